"""Clustering tasks: targets are cluster assignments of features."""
