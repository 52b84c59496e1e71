"""Pretext tasks on images with captions."""
