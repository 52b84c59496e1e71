"""From `--data` to batches: sources, the index, the canvas cache and the loader."""

from sslkit.data.canvas import Canvases as Canvases
from sslkit.data.index import Index as Index
from sslkit.data.loader import Loader as Loader
from sslkit.data.sources import find_parts as find_parts
from sslkit.data.sources import read_index as read_index

__all__ = ["Canvases", "Index", "Loader", "find_parts", "read_index"]
