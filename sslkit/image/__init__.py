"""Images: source, canvases, transforms, views, encoders."""
