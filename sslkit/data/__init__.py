"""From `--data` to batches, for any modality: index, locations, shards, loader, cache."""
