"""Clustering tasks: labels come from clusters of the features themselves."""
