"""A feed-forward network over the last few tokens."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslkit.contract.errors import SslkitError
from sslkit.text.encoders.base import TextEncoder

_DEVIATION = 0.1  # of initial vectors


def feedforward_text(
    in_channels: int,
    size: int = 128,
    order: int = 5,
    vectors: int = 64,
    width: int = 128,
    direct: int = 0,
    letters: int = 0,
) -> "FeedForwardEncoder":
    """Hidden layer (width 128) over the vectors (`vectors=64`) of the last `order=5` - 1 tokens; features are its mean."""
    if order < 2:
        raise SslkitError(f"order should be at least 2, a token and the one before it (got {order})", flag="encoder_option")
    if order > size:
        raise SslkitError(f"order {order} exceeds the {size} tokens of a passage", flag="encoder_option")
    return FeedForwardEncoder(in_channels, order, vectors, width, bool(direct), letters)


class FeedForwardEncoder(TextEncoder):
    """Compute tanh(d + Hx) from the vectors x of the last `order` - 1 tokens (Bengio et al., 2003, equation 1).

    With `direct`, states are that beside x itself, so that a linear layer over them has the paper's direct connections.
    Before the start of a passage vectors are zero.
    """

    provides = ("pooled", "tokens", "layers", "causal")
    causal: bool = True

    def __init__(self, ids: int, order: int, vectors: int, hidden: int, direct: bool, letters: int) -> None:
        self.order, self.direct = order, direct
        inputs = (order - 1) * vectors
        super().__init__(ids, hidden + inputs if direct else hidden, letters)
        self.token = nn.Embedding(ids, vectors)
        self.hidden = nn.Linear(inputs, hidden)
        nn.init.normal_(self.token.weight, std=_DEVIATION)

    def stages(self) -> list[list[nn.Parameter]]:
        """Return the parameters of the vectors, then those of the layer."""
        return [list(self.token.parameters()), list(self.hidden.parameters())]

    def layers(self, sample: Tensor) -> list[Tensor]:
        """Return the states, `[B, T, width]`."""
        vectors = F.pad(self.token(sample), (0, 0, self.order - 2, 0))
        context = vectors.unfold(1, self.order - 1, 1).transpose(2, 3).flatten(2)  # the oldest token first
        hidden = torch.tanh(self.hidden(context))
        return [torch.cat([hidden, context], dim=2) if self.direct else hidden]

    def vocabulary(self) -> tuple[list[str], Tensor] | None:
        """Return the words, most frequent first, and their vectors; None if tokens are no words."""
        tokenizer = self.tokenizer()
        return (tokenizer.pieces, self.token.weight[: self.first_special].detach()) if tokenizer.unit == "word" else None
