"""`sslkit map`: draw features in the plane."""

from dataclasses import dataclass

from sslkit.contract.errors import SslkitError
from sslkit.evaluation.embed import embedded
from sslkit.files import output_path
from sslkit.reporting.projection import draw_map
from sslkit.specs.look import MapSpec


@dataclass(frozen=True)
class MapResult:
    """Hold what `sslkit map --json` prints."""

    path: str
    images: int
    method: str
    weights: str
    checkpoint: str


def map_features(spec: MapSpec) -> MapResult:
    """Draw features in the plane, colored by label; everything `sslkit map` does."""
    out = output_path(spec.out, ".png")
    found = embedded(spec, spec.samples)
    if len(found.features) < 10:
        raise SslkitError(f"a map of {len(found.features)} samples says nothing", "expected ten or more", flag="data")
    draw_map(found.features, found.labels, spec.method, spec.seed, out)
    return MapResult(str(out), len(found.names), spec.method, found.weights, str(spec.ckpt))
