"""Predictive tasks: the label is made from the image itself."""
