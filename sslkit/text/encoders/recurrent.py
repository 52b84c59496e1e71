"""Recurrent networks over token ids."""

from typing import Any

from torch import Tensor, nn

from sslkit.contract.errors import SslkitError
from sslkit.text.encoders.base import TextEncoder

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
    if not 0 <= dropout < 1:
        raise SslkitError(f"dropout should be from 0 to below 1 (got {dropout})", flag="encoder_option")
    return RecurrentEncoder(in_channels, cell, width, depth, dropout, letters)


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
            for layer in self.cells:
                nn.init.ones_(
                    layer.get_parameter("bias_hh_l0")[width : 2 * width]
                )  # of the forget gate (Jozefowicz et al., 2015)

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
