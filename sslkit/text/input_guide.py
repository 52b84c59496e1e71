"""How a text becomes the input of an exported encoder: a tokenizer that other programs read, in words and in code."""

import importlib.util

from sslkit.contract.modality import InputGuide, Snippet
from sslkit.text.encoders.base import TokenEncoder
from sslkit.text.tokenizer import UNKNOWN

FILE = "tokenizer.json"
_CODE = [
    "import numpy as np",
    "from tokenizers import Tokenizer",
    f'tokenizer = Tokenizer.from_file("{FILE}")',
    'text = np.array([tokenizer.encode("A text.").ids])',
]


def input_guide(encoder: TokenEncoder, size: int) -> InputGuide:
    """Return how a text becomes the input `[1, size]` of an encoder; with a file if the library `tokenizers` is installed."""
    tokenizer, frame = encoder.tokenizer(), encoder.framing()
    padding = tokenizer.piece(frame.padding)
    around = " ".join([*map(tokenizer.piece, frame.first), "text", *map(tokenizer.piece, frame.end)])
    facts = {
        "unit": tokenizer.unit,
        "size": size,
        "ids": tokenizer.size,
        "padding": frame.padding,
        "unknown": tokenizer.special(UNKNOWN),
        "frame": around,
        "layout": "[batch, tokens]",
        "dtype": "int64",
    }
    has_library = importlib.util.find_spec("tokenizers") is not None
    holds = (
        f"`{FILE}` holds them, for the library `tokenizers`"
        if has_library
        else "`pip install 'sslkit[text]'` exports them, too"
    )
    text = [
        f"- **Tokens**: {tokenizer.unit}, {tokenizer.size:,} ids; {holds}.",
        f"- **Frame**: `{around}`; longer texts lose their end, shorter ones are padded with `{padding}`.",
        f"- **Values**: int64, `[batch, {size}]`.",
    ]
    summary = f"{size} token ids, padded with {padding}"
    if not has_library:
        return InputGuide(facts, summary, text, [])
    snippets = [Snippet("tokenizers", _CODE, makes_tensor=False)]
    return InputGuide(facts, f"{summary}, by the {FILE} beside it", text, snippets, {FILE: _tokenizer_file(encoder, size)})


def _tokenizer_file(encoder: TokenEncoder, size: int) -> bytes:
    """Return the tokenizer as the library keeps it: it frames, cuts and pads texts as evaluations do."""
    from tokenizers.processors import TemplateProcessing

    tokenizer, frame = encoder.tokenizer(), encoder.framing()
    first, end = ([tokenizer.piece(token) for token in tokens] for tokens in (frame.first, frame.end))
    library = tokenizer.to_library()
    if first or end:
        special = {tokenizer.piece(token): token for token in (*frame.first, *frame.end)}
        single, pair = " ".join([*first, "$A", *end]), " ".join([*first, "$A", *end, "$B", *end])
        library.post_processor = TemplateProcessing(single=single, pair=pair, special_tokens=list(special.items()))
    library.enable_truncation(size)
    library.enable_padding(length=size, pad_id=frame.padding, pad_token=tokenizer.piece(frame.padding))
    content: bytes = library.to_str().encode()
    return content
