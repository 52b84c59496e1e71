"""Joint-embedding tasks: align views of one image, avoiding collapse without negatives."""
