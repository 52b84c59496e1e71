"""Losses, each once, in float32 whatever the networks run in."""
