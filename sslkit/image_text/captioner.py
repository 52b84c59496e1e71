"""Decoders that write the caption of an image, token by token, and how they are asked: greedily or by beam search."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslkit.contract.errors import SslkitError
from sslkit.engine.checkpoint import Checkpoint, build_strictly
from sslkit.nn import CrossBlock
from sslkit.text.language_model import token_nats
from sslkit.text.tokenizer import CLS, END, PAD, SPECIALS, Tokenizer

PART = "captioner"  # of a checkpoint
_DEVIATION = 0.02  # of initial weights
_DEEPEST = 64  # blocks of a decoder
_SETTINGS = ("features", "ids", "length", "width", "depth", "heads", "letters")  # that a checkpoint describes, under PART
_LARGEST = 2**24


class Captioner(nn.Module):
    """Decoders that read an image's feature map, forward and backward; both share vectors of tokens (Desai & Johnson, 2021).

    The output layer has the input's vectors. The tokenizer is kept as `letters` bytes of JSON.
    """

    spelling: Tensor

    def __init__(
        self,
        features: int,
        ids: int,
        length: int,
        width: int,
        depth: int,
        heads: int,
        backward: bool,
        dropout: float,
        letters: int,
    ) -> None:
        super().__init__()
        self.first_special, self.length = ids - len(SPECIALS), length
        self.memory = nn.Linear(features, width)
        self.token, self.position = nn.Embedding(ids, width), nn.Parameter(torch.empty(length, width))
        self.norm, self.dropout = nn.LayerNorm(width), nn.Dropout(dropout)
        directions = ["forwards", *(["backwards"] if backward else [])]
        self.decoders = nn.ModuleDict(
            {name: nn.ModuleList(CrossBlock(width, heads, True, dropout) for _ in range(depth)) for name in directions}
        )
        self.bias = nn.Parameter(torch.zeros(ids))
        self.register_buffer("spelling", torch.zeros(letters, dtype=torch.uint8))
        for parameter in (self.token.weight, self.position):
            nn.init.normal_(parameter, std=_DEVIATION)

    def keep_tokenizer(self, content: bytes) -> None:
        """Keep a tokenizer, as `Tokenizer.to_bytes` wrote it, beside the weights."""
        self.spelling.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))

    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer that is kept; raises SslkitError if it is not that of the vectors."""
        return Tokenizer.from_checkpoint(self.spelling.cpu().numpy().tobytes(), self.token.num_embeddings)

    def project(self, feature_map: Tensor) -> Tensor:
        """Return the places of feature maps `[B, C, h, w]` as vectors, `[B, h * w, width]`."""
        vectors: Tensor = self.memory(feature_map.flatten(2).transpose(1, 2))
        return vectors

    def forward(self, memory: Tensor, tokens: Tensor, direction: str = "forwards") -> Tensor:
        """Return logits `[B, T, ids]` of the token after each of `tokens` `[B, T]`, of which the first is a start token."""
        x = self.dropout(self.token(tokens) + self.position[: tokens.shape[1]])
        blocks = self.decoders[direction]
        assert isinstance(blocks, nn.ModuleList)
        for block in blocks:
            x = block(x, memory)
        return F.linear(self.norm(x), self.token.weight, self.bias)

    def shift(self, tokens: Tensor) -> Tensor:
        """Return what is read to predict captions `[B, T]`: a start token, and all but the last token."""
        start = torch.full_like(tokens[:, :1], self.first_special + CLS)
        return torch.cat([start, tokens[:, :-1]], dim=1)

    def is_padding(self, tokens: Tensor) -> Tensor:
        """Return which tokens are padding."""
        return tokens == self.first_special + PAD

    def reverse(self, tokens: Tensor) -> Tensor:
        """Return captions `[B, T]` from their last word to the first; end and padding stay behind."""
        count = (tokens < self.first_special).sum(dim=1, keepdim=True)
        place = torch.arange(tokens.shape[1], device=tokens.device)
        return tokens.gather(1, torch.where(place < count, count - 1 - place, place))

    def nats(self, memory: Tensor, tokens: Tensor, direction: str = "forwards") -> Tensor:
        """Return -log p of each token of captions `[B, T]`, in nats; 0 for padding."""
        return self.nats_of(self(memory, self.shift(tokens), direction).float(), tokens)

    def nats_of(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """Return -log p of each token of captions `[B, T]`, in nats, from logits `[B, T, ids]`; 0 for padding."""
        return token_nats(logits, tokens).masked_fill(self.is_padding(tokens), 0)

    @torch.no_grad()
    def write(self, memory: Tensor, beam: int = 1) -> Tensor:
        """Return the likeliest captions found, `[B, length]`, END and padding behind each.

        By beam search over so many captions at once; 1: greedily. No length is favored: log p is divided by the number of
        tokens.
        """
        batch, ids, end = len(memory), self.token.num_embeddings, self.first_special + END
        device = memory.device
        memory = memory.repeat_interleave(beam, dim=0)
        tokens = torch.full((batch * beam, 1), self.first_special + CLS, device=device)
        score = torch.full((batch, beam), float("-inf"), device=device)
        score[:, 0] = 0  # all beams begin alike: only one counts
        ended, counts = torch.zeros(batch, beam, dtype=torch.bool, device=device), torch.zeros(batch, beam, device=device)
        for _ in range(self.length):
            logits = self(memory, tokens)[:, -1].float()
            logits[:, self.first_special : end] = float("-inf")  # special tokens that no caption has
            steps = logits.log_softmax(dim=1).view(batch, beam, ids)
            steps[ended] = float("-inf")
            steps[..., end].masked_fill_(ended, 0)  # what has ended stays as it is
            total, place = (score[..., None] + steps).flatten(1).topk(beam, dim=1)
            source, chosen = place // ids, place % ids
            rows = (torch.arange(batch, device=device)[:, None] * beam + source).flatten()
            was_ended, counts = ended.gather(1, source), counts.gather(1, source)
            tokens = torch.cat([tokens[rows], chosen.flatten()[:, None]], dim=1)
            score, counts, ended = total, counts + (~was_ended).float(), was_ended | (chosen == end)
            if ended.all():
                break
        best = (score / counts.clamp(min=1)).argmax(dim=1)
        written = tokens.view(batch, beam, -1)[torch.arange(batch, device=device), best, 1:]
        after = (written == end).cumsum(dim=1) - (written == end).long() > 0
        return F.pad(
            written.masked_fill(after, self.first_special + PAD),
            (0, self.length - written.shape[1]),
            value=self.first_special + PAD,
        )


def read_captioner(checkpoint: Checkpoint) -> Captioner:
    """Return the decoders of a checkpoint in eval mode; raises SslkitError if it has none."""
    described = checkpoint.recorded_by_task(PART)
    state = checkpoint.part(PART)
    if described is None or not state:
        raise SslkitError(
            f"{checkpoint.path} writes no captions: it was trained by {checkpoint.metadata['task']}",
            "expected a checkpoint of virtex",
            flag="ckpt",
        )
    whole = all(type(described.get(name)) is int and 0 < described[name] <= _LARGEST for name in _SETTINGS)
    if (
        not whole
        or described["width"] % described["heads"]
        or described["ids"] <= len(SPECIALS)
        or described["depth"] > _DEEPEST
    ):
        raise SslkitError(f"{checkpoint.path} does not describe its captioner", "the file was altered", flag="ckpt")
    backward = any(name.startswith("decoders.backwards.") for name in state)
    settings = {name: described[name] for name in _SETTINGS}
    captioner = build_strictly(lambda: Captioner(**settings, backward=backward, dropout=0.0), state, str(checkpoint.path))
    return captioner.eval()
