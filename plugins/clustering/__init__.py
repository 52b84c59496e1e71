"""Clustering tasks: labels are found in the features themselves."""
