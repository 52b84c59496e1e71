"""Contrastive tasks on point clouds."""
