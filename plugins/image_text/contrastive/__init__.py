"""Contrastive tasks on images with captions."""
