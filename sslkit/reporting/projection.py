"""Features in two dimensions, by PCA or t-SNE."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sslkit.contract.errors import SslkitError
from sslkit.extras import load_extra
from sslkit.files import write_atomically

_FONT = 7  # points
_LETTER = 0.62  # width of a letter, in heights
_CLASSES = 20  # as many colors as can be distinguished


def project(features: NDArray[np.float32], method: str, seed: int) -> tuple[NDArray[np.float64], str]:
    """Return unit features `[N, D]` projected to `[N, 2]`, and the method in words.

    PCA's first two components, or t-SNE (van der Maaten & Hinton, 2008) of the first fifty. Raises SslkitError if all
    features are alike.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    unit = features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
    if np.ptp(unit, axis=0).max() < 1e-6:
        raise SslkitError("the features of all images are alike", "there is no map to draw; was the run healthy?")
    components = 2 if method == "pca" else min(50, *unit.shape)
    pca = PCA(n_components=components, random_state=seed)
    reduced = pca.fit_transform(unit.astype(np.float64))
    if method == "pca":
        return reduced, f"PCA, {pca.explained_variance_ratio_.sum():.0%} of the variance"
    perplexity = min(30.0, (len(unit) - 1) / 3)
    placed = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(reduced)
    return placed, f"t-SNE, perplexity {perplexity:g}"


def load_pyplot() -> Any:
    """Return matplotlib's plots, drawing into files; raises SslkitError, naming the extra, if it is not installed."""
    load_extra("matplotlib", "plots", "sslkit map").use("Agg")
    return load_extra("matplotlib.pyplot", "plots", "sslkit map")


def draw_map(
    features: NDArray[np.float32],
    labels: list[str] | None,
    out: Path,
    *,
    method: str,
    seed: int,
    words: list[str] | None = None,
) -> None:
    """Write a picture of features in two dimensions, colored by label if there are any (the twenty most frequent).

    Words are written beside their points where there is room, the first ones first.
    """
    pyplot = load_pyplot()
    places, title = project(features, method, seed)
    figure, axes = pyplot.subplots(figsize=(9, 7), layout="constrained")
    groups = np.array(labels if labels is not None else [""] * len(places))
    names, counts = np.unique(groups, return_counts=True)
    frequent = sorted(names[np.argsort(-counts, kind="stable")][:_CLASSES])
    colors = pyplot.get_cmap("tab10" if len(frequent) <= 10 else "tab20")
    rest = ~np.isin(groups, frequent)
    if rest.any():
        axes.scatter(places[rest, 0], places[rest, 1], s=8, color="lightgray", label="others")
    for number, name in enumerate(frequent):
        group = places[groups == name]
        axes.scatter(group[:, 0], group[:, 1], s=8, color=colors(number), alpha=0.8, label=name or None)
    if labels is not None:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, markerscale=2)
    if words is not None:
        _write_words(axes, places, words)
    axes.set(title=f"{len(places):,} {'samples' if words is None else 'words'}, {title}", xticks=[], yticks=[])
    for side in axes.spines.values():
        side.set_visible(False)
    with write_atomically(out) as stream:
        figure.savefig(stream, format="png", dpi=120)
    pyplot.close(figure)


def _write_words(axes: Any, places: NDArray[np.float64], words: list[str]) -> None:
    """Write words at their points, but for those that would cover a word before them."""
    axes.figure.draw_without_rendering()  # so that points have places on the picture
    points = axes.transData.transform(places)
    height = _FONT * axes.figure.dpi / 72
    taken = np.zeros((0, 4))  # left, bottom, right, top
    for word, place, (left, bottom) in zip(words, places, points, strict=True):
        box = np.array([left, bottom, left + _LETTER * height * len(word), bottom + height])
        free = (box[2] < taken[:, 0]) | (box[0] > taken[:, 2]) | (box[3] < taken[:, 1]) | (box[1] > taken[:, 3])
        if free.all():
            taken = np.vstack([taken, box])
            axes.annotate(word, place, fontsize=_FONT, parse_math=False)
