"""Pretext tasks on several modalities at once."""
