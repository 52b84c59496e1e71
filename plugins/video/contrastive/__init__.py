"""Contrastive tasks on video."""
