"""Pretext tasks as a whole: loading them, training several jointly, scaffolding a new one."""
