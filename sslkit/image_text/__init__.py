"""Images with captions: source, text encoders, zero-shot evaluation."""
