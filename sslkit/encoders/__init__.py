"""Build encoders from recipes."""
