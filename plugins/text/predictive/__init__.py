"""Predictive tasks on text."""
