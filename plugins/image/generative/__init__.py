"""Generative tasks: reconstruct images from a code, or predict pixels from earlier ones."""
