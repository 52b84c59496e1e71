"""Contrastive tasks on videos with sound."""
