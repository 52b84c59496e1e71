"""Tasks on images with captions that write the caption."""
