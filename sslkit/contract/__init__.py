"""The interface for plugin authors: errors, options, results, tasks, encoders, sources, modalities, evaluations.

Nothing here imports anything else of sslkit's."""
