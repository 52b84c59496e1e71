"""Pretext tasks on audio."""
