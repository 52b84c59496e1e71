"""Tasks on point clouds."""
