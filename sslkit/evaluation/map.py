"""`sslkit map`: features projected to two dimensions."""

from dataclasses import dataclass

from sslkit.contract.errors import SslkitError
from sslkit.evaluation.embed import compute_embeddings
from sslkit.files import output_path
from sslkit.reporting.projection import draw_map, load_pyplot
from sslkit.specs.look import MapSpec


@dataclass(frozen=True)
class MapResult:
    """The picture that was written."""

    path: str
    samples: int
    method: str
    weights: str
    checkpoint: str


def map_features(spec: MapSpec) -> MapResult:
    """Draw features in two dimensions, colored by label, or words as text, as `sslkit map` does."""
    out = output_path(spec.out, ".png")
    load_pyplot()  # before anything is computed
    embeddings = compute_embeddings(spec, spec.samples)
    if len(embeddings.features) < 10:
        raise SslkitError(
            f"{len(embeddings.features)} samples are too few to draw a map", "at least 10 are needed", flag="data"
        )
    words = embeddings.names if embeddings.words else None
    draw_map(embeddings.features, embeddings.labels, out, method=spec.method, seed=spec.seed, words=words)
    return MapResult(str(out), len(embeddings.names), spec.method, embeddings.weights, str(spec.ckpt))
