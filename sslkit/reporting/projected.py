"""The map of a report: features in two dimensions as SVG, with the sample under the pointer."""

from sslkit.reporting.figures import Figures, MapPoint
from sslkit.reporting.page import image, text

_WIDTH, _HEIGHT, _MARGIN = 900, 560, 16
_NAMES = 300  # points up to which names are tried to be written beside them
_LETTER, _LINE = 7.2, 15  # pixels of a letter and of a line of names


def draw_map(figures: Figures) -> str:
    """Return the map, nothing if there is none: a color for each label, or names as far as there is room."""
    if not figures.places:
        return ""
    labels = sorted({place.label for place in figures.places if place.label is not None})
    colors = {label: _color(number, len(labels)) for number, label in enumerate(labels)}
    radius = 5.0 if figures.tiles is not None or labels else 2.5
    points = "".join(_point(place, number, radius, colors) for number, place in enumerate(figures.places))
    names = _names(figures.places) if figures.tiles is None and not labels else ""
    tip = ""
    if figures.tiles is not None:
        kind = "pixels" if figures.tiles.sharp else ""
        sheet = image(figures.tiles.picture, "", kind).replace("<img", f'<img data-columns="{figures.tiles.columns}"', 1)
        tip = f"<div>{sheet}</div>"
    legend = " ".join(f'<span style="color:{color}">&#9679;</span>&nbsp;{text(label)}' for label, color in colors.items())
    title = "<title>Map of the features</title><desc>Samples whose features are alike lie close to each other.</desc>"
    return (
        f'<div class="map"><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{title}{points}{names}</svg>{tip}</div>'
        f'<p class="legend">{legend}</p><p class="quiet">{text(figures.places_title)}</p>'
    )


def _point(place: MapPoint, number: int, radius: float, colors: dict[str, str]) -> str:
    x, y = _position(place)
    color = f' style="color:{colors[place.label]}"' if place.label is not None else ' class="c0"'
    name = ", ".join(part for part in (place.label, place.name) if part)
    return f'<circle{color} cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" data-tile="{number}"><title>{text(name)}</title></circle>'


def _names(places: list[MapPoint]) -> str:
    """Return names beside their points, the first ones first, where they cover no other name."""
    written: list[tuple[float, float, float]] = []  # left, right, height
    parts = []
    for place in places[:_NAMES]:
        x, y = _position(place)
        width = _LETTER * len(place.name)
        left = x + 8 if x + 8 + width < _WIDTH else x - 8 - width
        if all(left > other[1] or left + width < other[0] or abs(y - other[2]) > _LINE for other in written):
            written.append((left, left + width, y))
            parts.append(f'<text x="{left:.1f}" y="{y + 4:.1f}">{text(place.name)}</text>')
    return "".join(parts)


def _position(place: MapPoint) -> tuple[float, float]:
    return _MARGIN + place.x * (_WIDTH - 2 * _MARGIN), _MARGIN + place.y * (_HEIGHT - 2 * _MARGIN)


def _color(number: int, labels: int) -> str:
    """Return a color: of few labels one of the page's series, of many a hue."""
    return f"var(--c{number})" if labels <= 8 else f"hsl({360 * number / labels:.0f} 65% 50%)"
