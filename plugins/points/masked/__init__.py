"""Masked tasks on point clouds."""
