"""Masked tasks: hide a part of the image and predict it from the rest."""
