"""Options of audio."""

from sslkit.contract.modality import FileKind

RECORDINGS = FileKind(
    "recordings",
    frozenset({".wav", ".flac"}),
    "a folder of .wav or .flac recordings, a .txt list, or a .csv with a `path` column",
)
