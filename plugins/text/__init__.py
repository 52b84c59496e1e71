"""Pretext tasks on text."""
