"""Joint-embedding tasks: two views of one image agree, and something else than other images keeps them from being constant."""
