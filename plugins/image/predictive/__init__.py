"""Predictive tasks on images: the target is derived from the image itself."""
