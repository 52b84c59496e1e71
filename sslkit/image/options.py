"""Options of images."""

from sslkit.contract.modality import FileKind

_EXTENSIONS = ".jpg .jpeg .jfif .png .bmp .gif .webp .tif .tiff .ppm .pgm .pbm .jp2 .ico .avif"


IMAGES = FileKind(
    "images",
    frozenset(_EXTENSIONS.split()),
    "a folder of images, a .txt list, a .csv with a `path` column, .npy/.npz arrays, or wds:SHARDS.tar",
    arrays=True,
    shards=True,
)
