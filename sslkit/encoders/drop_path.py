"""Stochastic depth."""

from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import SslkitError
from sslkit.encoders.composed import Concat
from sslkit.encoders.recipe import encoder_name


def drop_paths(encoder: Encoder, largest: float) -> None:
    """Let residual branches be skipped at random, at a rate that rises linearly to `largest` (Huang et al., 2016).

    Raises SslkitError if there are none: blocks show them, as timm's do, as `drop_path`, `drop_path1` and `drop_path2`.
    """
    from timm.layers.drop import DropPath

    for part in encoder.encoders if isinstance(encoder, Concat) else [encoder]:
        blocks = [
            (module, names)
            for module in part.modules()
            if (names := [name for name in ("drop_path", "drop_path1", "drop_path2") if hasattr(module, name)])
        ]
        if not blocks:
            raise SslkitError(f"{encoder_name(encoder.recipe)} has no residual branches to skip", "use 0", flag="drop_path")
        for place, (block, names) in enumerate(blocks):
            for name in names:
                setattr(block, name, DropPath(largest * place / max(1, len(blocks) - 1)))
