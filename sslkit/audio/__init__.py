"""Audio: recordings, spectrograms, encoders."""
