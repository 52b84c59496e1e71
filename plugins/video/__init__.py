"""Pretext tasks on video."""
