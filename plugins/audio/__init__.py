"""Pretext tasks on sound."""
