"""Contrastive tasks: match views of one image against those of other images."""
