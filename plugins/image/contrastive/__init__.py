"""Contrastive tasks: two views of one image agree, views of different images do not."""
