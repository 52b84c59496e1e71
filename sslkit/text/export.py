"""Word vectors in word2vec's text format, which gensim, fastText's tools and many others read."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sslkit.contract.errors import SslkitError
from sslkit.contract.exporter import Exporter, ExportJob, Settings


class Word2Vec(Exporter):
    """Word vectors as text in word2vec's format."""

    suffix = ".word2vec.txt"
    reader = Path(__file__).with_name("read_word2vec.py")
    tolerance = 0.0

    def check(self, job: ExportJob) -> None:
        """Raise SslkitError for a checkpoint without word vectors."""
        _vocabulary(job)

    def batches(self, job: ExportJob) -> tuple[list[Tensor], str]:
        """Return every word as a text of its own, int64 `[V, 1]`."""
        return [torch.arange(len(_vocabulary(job)[0]))[:, None]], "words of the checkpoint"

    def write(self, job: ExportJob, samples: Tensor, path: Path) -> Settings:
        """Write a line with the number of words and their width, then one line per word: the word and its values."""
        words, table = _vocabulary(job)
        with open(path, "wb") as stream:
            stream.write(f"{len(words)} {table.shape[1]}\n".encode())
            for word, row in zip(words, table.numpy(), strict=True):
                stream.write(f"{word} {' '.join(map(str, row))}\n".encode())  # numpy's shortest that reads back as the same
        return {}

    def loading(self, name: str, settings: Settings, output: str) -> list[str]:
        """Return lines that need gensim only."""
        return ["from gensim.models import KeyedVectors", f'vectors = KeyedVectors.load_word2vec_format("{name}")']

    def contents(self, job: ExportJob) -> dict[str, Any]:
        """Return the number of words and the width of their vectors."""
        words, table = _vocabulary(job)
        return {"words": f"{len(words):,}, most frequent first", "width": table.shape[1]}


def _vocabulary(job: ExportJob) -> tuple[list[str], Tensor]:
    """Return words and their vectors, float32 `[V, width]`; raises SslkitError if there are none."""
    vocabulary = job.network.encoder.vocabulary()
    if vocabulary is None:
        raise SslkitError(f"{job.checkpoint} holds no word vectors; word2vec needs a skipgram checkpoint", flag="to")
    return vocabulary[0], vocabulary[1].float()
