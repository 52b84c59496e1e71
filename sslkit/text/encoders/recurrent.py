"""Recurrent networks over token ids."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from sslkit.contract.errors import SslkitError
from sslkit.text.encoders.base import TextEncoder, check_dropout

_CELLS: dict[str, Any] = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
_LARGEST = 0.1  # of the initial input vectors


def rnn_text(
    in_channels: int,
    size: int = 128,
    cell: str = "lstm",
    width: int = 256,
    depth: int = 1,
    dropout: float = 0.0,
    letters: int = 0,
) -> "RecurrentEncoder":
    """Recurrent network (`cell=lstm`, gru or rnn; width 256, depth 1) over the tokens of a text; features are their mean."""
    if cell not in _CELLS:
        raise SslkitError(f"cell should be {', '.join(_CELLS)} (got {cell})", flag="encoder_option")
    check_dropout(dropout)
    return RecurrentEncoder(in_channels, cell, width, depth, dropout, letters)


def elmo_text(
    in_channels: int,
    size: int = 128,
    width: int = 128,
    depth: int = 2,
    dropout: float = 0.0,
    letters: int = 0,
) -> "BidirectionalRecurrent":
    """LSTMs in both directions (width 128 each, depth 2) over the tokens of a text; features are the mean, twice as wide."""
    check_dropout(dropout)
    return BidirectionalRecurrent(in_channels, width, depth, dropout, letters)


class RecurrentEncoder(TextEncoder):
    """Read tokens from left to right, each layer the states of the one below; dropout between layers (Zaremba et al., 2014).

    States begin at zero in every sample.
    """

    provides = ("pooled", "tokens", "layers", "causal")
    causal: bool = True

    def __init__(self, ids: int, cell: str, width: int, depth: int, dropout: float, letters: int) -> None:
        super().__init__(ids, width, letters)
        self.token = nn.Embedding(ids, width)
        self.cells = nn.ModuleList(_CELLS[cell](width, width, batch_first=True) for _ in range(depth))
        self.dropout = nn.Dropout(dropout)
        nn.init.uniform_(self.token.weight, -_LARGEST, _LARGEST)
        if cell == "lstm":
            _open_forget_gates(self.cells)

    def stages(self) -> list[list[nn.Parameter]]:
        """Return the parameters of the embedding, then those of each layer."""
        return [list(self.token.parameters()), *(list(layer.parameters()) for layer in self.cells)]

    def layers(self, sample: Tensor) -> list[Tensor]:
        """Return the states of each layer, `[B, T, width]`."""
        x = self.token(sample)
        outputs: list[Tensor] = []
        for layer in self.cells:
            x, _ = layer(self.dropout(x))
            outputs.append(x)
        return [*outputs[:-1], self.dropout(x)]


class BidirectionalRecurrent(TextEncoder):
    """Two stacks of LSTMs over the same input vectors, one from left to right, one from right to left (Peters et al., 2018).

    From the second on, what a layer computes is added to what it reads. Layers are the input vectors, twice side by side, and
    the states of both directions side by side. Padding stands at the end, and the second stack begins before it.
    """

    provides = ("pooled", "tokens", "layers")

    def __init__(self, ids: int, width: int, depth: int, dropout: float, letters: int) -> None:
        super().__init__(ids, 2 * width, letters)
        self.token = nn.Embedding(ids, width)
        self.forward_cells = nn.ModuleList(nn.LSTM(width, width, batch_first=True) for _ in range(depth))
        self.backward_cells = nn.ModuleList(nn.LSTM(width, width, batch_first=True) for _ in range(depth))
        self.dropout = nn.Dropout(dropout)
        nn.init.uniform_(self.token.weight, -_LARGEST, _LARGEST)
        _open_forget_gates([*self.forward_cells, *self.backward_cells])

    def stages(self) -> list[list[nn.Parameter]]:
        """Return the parameters of the embedding, then those of each layer."""
        layers = zip(self.forward_cells, self.backward_cells, strict=True)
        return [list(self.token.parameters()), *([*first.parameters(), *second.parameters()] for first, second in layers)]

    def layers(self, sample: Tensor) -> list[Tensor]:
        """Return the input vectors and the states of each layer, `[B, T, width]`."""
        vectors = self.token(sample)
        both = zip(self.states_before(sample), self.states_after(sample), strict=True)
        return [torch.cat([vectors, vectors], dim=2), *(torch.cat(states, dim=2) for states in both)]

    def next_states(self, sample: Tensor) -> Tensor:
        """Return the last states of what was read up to each token, `[B, T, width / 2]`."""
        return self.states_before(sample)[-1]

    def states_before(self, sample: Tensor) -> list[Tensor]:
        """Return the states of each layer from left to right, `[B, T, width / 2]`: of each token and those before it."""
        return self._read(self.forward_cells, self.token(sample))

    def states_after(self, sample: Tensor) -> list[Tensor]:
        """Return the states of each layer from right to left, `[B, T, width / 2]`: of each token and those after it."""
        length = (~self.is_padding(sample)).sum(dim=1, keepdim=True)
        place = torch.arange(sample.shape[1], device=sample.device)
        turned = torch.where(place < length, length - 1 - place, place)
        vectors = self.token(sample.gather(1, turned))
        back = turned[..., None].expand_as(vectors)
        return [states.gather(1, back) for states in self._read(self.backward_cells, vectors)]

    def _read(self, cells: nn.ModuleList, x: Tensor) -> list[Tensor]:
        outputs: list[Tensor] = []
        for number, layer in enumerate(cells):
            states, _ = layer(self.dropout(x))
            x = states if number == 0 else x + states
            outputs.append(x)
        return [*outputs[:-1], self.dropout(x)]


def _open_forget_gates(cells: Iterable[nn.Module]) -> None:
    """Let LSTMs begin with open forget gates (Jozefowicz et al., 2015): one of the two biases is 1."""
    for cell in cells:
        bias = cell.get_parameter("bias_hh_l0")
        nn.init.ones_(bias[len(bias) // 4 : len(bias) // 2])
