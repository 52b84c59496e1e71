"""Predictive tasks on video."""
