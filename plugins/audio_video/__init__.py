"""Pretext tasks on videos with sound."""
