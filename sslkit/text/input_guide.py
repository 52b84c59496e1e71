"""How a text becomes the input of an exported encoder: a tokenizer that other programs read, in words and in code."""

from sslkit.contract.modality import InputGuide, Snippet
from sslkit.text.encoders.base import TokenEncoder
from sslkit.text.tokenizer import UNKNOWN

FILE = "tokenizer.json"


def input_guide(encoder: TokenEncoder, size: int) -> InputGuide:
    """Return how a text becomes the input `[1, size]` of an encoder."""
    tokenizer, frame = encoder.tokenizer(), encoder.framing()
    first, end = (tuple(tokenizer.piece(token) for token in tokens) for tokens in (frame.first, frame.end))
    library = tokenizer.to_library()
    shape = " ".join([*first, "$A", *end])
    pair = " ".join([*first, "$A", *end, "$B", *end])
    framed = {**dict(zip(first, frame.first, strict=True)), **dict(zip(end, frame.end, strict=True))}
    if framed:
        from tokenizers.processors import TemplateProcessing

        library.post_processor = TemplateProcessing(single=shape, pair=pair, special_tokens=list(framed.items()))
    padding = tokenizer.piece(frame.padding)
    library.enable_truncation(size)
    library.enable_padding(length=size, pad_id=frame.padding, pad_token=padding)
    summary = f"token ids of {FILE}, {size} of them, padded with {padding}"
    facts = {
        "unit": tokenizer.unit,
        "size": size,
        "ids": tokenizer.size,
        "padding": frame.padding,
        "unknown": tokenizer.special(UNKNOWN),
        "frame": shape.replace("$A", "text"),
        "layout": "[batch, tokens]",
        "dtype": "int64",
    }
    text = [
        f"- **Tokens**: {tokenizer.unit}, {tokenizer.size:,} ids; `{FILE}` holds them, for the library `tokenizers`.",
        f"- **Frame**: `{facts['frame']}`; longer texts lose their end, shorter ones are padded with `{padding}`.",
        f"- **Values**: int64, `[batch, {size}]`.",
    ]
    code = [
        "import numpy as np",
        "from tokenizers import Tokenizer",
        f'tokenizer = Tokenizer.from_file("{FILE}")',
        'text = np.array([tokenizer.encode("A text.").ids])',
    ]
    return InputGuide(
        facts, summary, text, [Snippet("tokenizers", code, makes_tensor=False)], {FILE: library.to_str().encode()}
    )
