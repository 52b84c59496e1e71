"""Generative tasks: paint images, or tell them pixel by pixel, from a code or from what came before."""
