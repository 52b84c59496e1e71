"""Masked tasks on video."""
