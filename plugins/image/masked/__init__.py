"""Masked image modeling: predict the masked patches of an image."""
