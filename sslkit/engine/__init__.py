"""The engine: one loop that runs every task."""
