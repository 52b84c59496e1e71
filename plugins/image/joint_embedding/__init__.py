"""Joint-embedding tasks: two views of one image agree; collapse is prevented without negatives."""
