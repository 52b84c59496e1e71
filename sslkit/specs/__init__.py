"""The pydantic spec of every command. A default is defined here (or in a task's `Options`) and nowhere else.

Flags, `--help`, the tables in the docs and error messages are generated from these models. Nothing here imports torch."""
