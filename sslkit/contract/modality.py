"""What sslkit asks of a modality."""

from dataclasses import dataclass


@dataclass(frozen=True)
class FileKind:
    """Describe which files are samples of a modality, and what `--data` accepts: for messages."""

    noun: str  # what samples are called, in the plural
    extensions: frozenset[str]
    accepts: str
    arrays: bool = False  # also rows of .npy and .npz arrays
    shards: bool = False  # also members of WebDataset shards
