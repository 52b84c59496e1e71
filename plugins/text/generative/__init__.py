"""Generative tasks for text."""
