"""From `--data` to batches: sources by modality, the index and canvases of images, and the loader."""
