"""Contact sheets: queries and what is nearest to them."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from sslkit.files import write_atomically

_TILE, _GAP, _TEXT = 96, 6, 15


_RIGHT, _WRONG, _PLAIN = (46, 139, 87), (200, 60, 50), (90, 90, 90)


def draw_sheet(rows: list[tuple[Image.Image, str | None, list[tuple[Image.Image, str | None, float]]]], out: Path) -> None:
    """Write a picture with a row for each query: itself, then its neighbors with cosine and label.

    A neighbor's label is green if it is the query's, else red; gray where there is none to compare with.
    """
    columns = 1 + max(len(neighbors) for _, _, neighbors in rows)
    step, height = _TILE + _GAP, _TILE + 2 * _TEXT + _GAP
    sheet = Image.new("RGB", (columns * step + 3 * _GAP, len(rows) * height + _GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for line, (query, label, neighbors) in enumerate(rows):
        top = line * height + _GAP
        sheet.paste(_tile(query), (_GAP, top))
        pen.text((_GAP, top + _TILE + 1), _short(label or "query"), fill="black", font=font)
        for column, (image, neighbor_label, cosine) in enumerate(neighbors, start=1):
            left = column * step + 3 * _GAP
            sheet.paste(_tile(image), (left, top))
            color = _PLAIN if label is None or neighbor_label is None else _RIGHT if neighbor_label == label else _WRONG
            pen.text((left, top + _TILE + 1), f"{cosine:.3f}", fill=_PLAIN, font=font)
            pen.text((left, top + _TILE + _TEXT), _short(neighbor_label or ""), fill=color, font=font)
    with write_atomically(out) as stream:
        sheet.save(stream, format="PNG")


def _tile(image: Image.Image) -> Image.Image:
    # Small images keep their pixels: smoothing would hide what the encoder was given.
    resampling = Image.Resampling.NEAREST if image.width < _TILE else Image.Resampling.LANCZOS
    return image.convert("RGB").resize((_TILE, _TILE), resampling)


def _short(text: str) -> str:
    return text if len(text) <= 16 else text[:15] + "…"
