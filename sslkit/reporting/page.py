"""Pieces of an HTML page that needs nothing else: escaped text, tables, pictures, the page around them."""

import base64
import html
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_ASSETS = Path(__file__).parent / "assets"


def text(value: Any) -> str:
    """Return a value as text between tags or in a quoted attribute."""
    return html.escape(str(value))


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a table of texts; without any title in the head, the first column is a title of its row."""
    titles = "".join(f"<th>{text(title)}</th>" for title in head)
    start = "td" if any(head) else "th"
    body = ""
    for row in rows:
        tags = [start if place == 0 else "td" for place in range(len(row))]
        cells = "".join(f"<{tag}>{text(cell)}</{tag}>" for tag, cell in zip(tags, row, strict=True))
        body += f"<tr>{cells}</tr>"
    return f'<div class="wide"><table>{f"<tr>{titles}</tr>" if any(head) else ""}{body}</table></div>'


def figure(picture: bytes, caption: str, kind: str = "") -> str:
    """Return a picture with its caption."""
    return f"<figure>{image(picture, caption, kind)}<figcaption>{text(caption)}</figcaption></figure>"


def image(picture: bytes, description: str, kind: str = "") -> str:
    """Return a picture, as part of the page."""
    media_type = "png" if picture.startswith(b"\x89PNG") else "jpeg"
    attribute = f' class="{kind}"' if kind else ""
    data = base64.b64encode(picture).decode()
    return f'<img{attribute} alt="{text(description)}" src="data:image/{media_type};base64,{data}">'


def command_block(command: str) -> str:
    """Return a command to copy; where a line ends, it does so before a flag."""
    first, *flags = command.split(" --")
    words = "".join(f" <span>--{text(flag)}</span>" for flag in flags)
    return f"<pre>{text(first)}{words}</pre>"


def row(parts: Iterable[str], kind: str) -> str:
    """Return parts side by side, or below each other where it is narrow."""
    return f'<div class="{kind}">{"".join(parts)}</div>'


def fold(title: str, content: str) -> str:
    """Return content that unfolds on request, and on paper."""
    return f"<details><summary>{text(title)}</summary>{content}</details>"


def section(title: str, *parts: str) -> str:
    """Return a section; nothing if it has no content."""
    content = "".join(parts)
    return f"<section><h2>{text(title)}</h2>{content}</section>" if content else ""


def asset(*names: str) -> str:
    """Return style sheets or scripts of ours, joined."""
    return "".join((_ASSETS / name).read_text(encoding="utf-8") for name in names)


def document(title: str, style: str, body: str, script: str = "", nonce: str = "") -> bytes:
    """Return the whole page; with a `nonce`, a policy may allow only this style and script."""
    attribute = f' nonce="{nonce}"' if nonce else ""
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{text(title)}</title><style{attribute}>{style}</style>"
        f"<body><main>{body}</main><script{attribute}>{script}</script></body></html>\n"
    )
    return page.encode(errors="replace")  # names of files may be no text
