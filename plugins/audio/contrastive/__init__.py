"""Contrastive tasks on audio."""
