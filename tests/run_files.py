"""The files of a run folder, however many processes wrote it."""

RUN_FILES = {
    "spec.json",
    "metrics.jsonl",
    "model.safetensors",
    "resume.pt",
    "training.json",
    "lock",
    "previews",
}
