"""Predictive tasks on videos with sound."""
