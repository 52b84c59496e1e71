"""Masked tasks on audio."""
