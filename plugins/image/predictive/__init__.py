"""Predictive tasks: the label is derived from the image itself."""
