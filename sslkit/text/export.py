"""Word vectors in word2vec's text format, which gensim, fastText's tools and many others read."""

from pathlib import Path

import torch

from sslkit.contract.errors import SslkitError
from sslkit.engine.checkpoint import Checkpoint
from sslkit.evaluation.models import weights_hash
from sslkit.exporting.card import titled
from sslkit.files import write_atomically


def write_words(checkpoint: Checkpoint, path: Path, card: str) -> float:
    """Write a line of how many words and how wide, then a word and its values a line; return the largest difference read back.

    Raises SslkitError for a checkpoint without word vectors.
    """
    encoder = checkpoint.build_encoder()
    vocabulary = encoder.vocabulary()
    if vocabulary is None:
        raise SslkitError(f"{checkpoint.path} has no word vectors; word2vec needs a skipgram checkpoint", flag="to")
    words, table = vocabulary[0], vocabulary[1].float()
    with write_atomically(path) as stream:
        stream.write(f"{len(words)} {encoder.width}\n".encode())
        for word, row in zip(words, table.numpy(), strict=True):
            stream.write(f"{word} {' '.join(map(str, row))}\n".encode())  # numpy's shortest that reads back as the same
    with open(path, encoding="utf-8") as written:
        next(written)
        back = torch.tensor([[float(value) for value in line.split(" ")[1:]] for line in written])
    metadata = checkpoint.metadata
    facts = {
        "task": metadata["task"],
        "trained": f"{metadata['step']:,} steps",
        "words": f"{len(words):,}, most frequent first",
        "width": encoder.width,
        "data": f"fingerprint {metadata['data']}",
        "weights": f"hash {weights_hash(encoder)}",
    }
    lines = [*titled(path, facts), "", "## Loading", "", "```python", "from gensim.models import KeyedVectors"]
    lines += [f'vectors = KeyedVectors.load_word2vec_format("{path.name}")', "```", ""]
    with write_atomically(Path(card)) as stream:
        stream.write("\n".join(lines).encode())
    return float((back - table).abs().max())
