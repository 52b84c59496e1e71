"""What a plugin author programs against: errors, options, results, tasks, encoders, sources, modalities, evaluations.

Nothing here imports anything else of sslkit's."""
