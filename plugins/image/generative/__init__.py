"""Generative tasks: reconstruct images from latent codes, or predict pixels autoregressively."""
