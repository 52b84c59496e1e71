"""Masked tasks on images with captions."""
