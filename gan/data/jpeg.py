"""JPEGs decoded by simplejpeg, where that is installed: Pillow's pixels in less time.

Pillow stays the judge. It has read the header and found nothing against the file; what is unusual
about one, and all that libjpeg-turbo warns of, is left to it. Both are libjpeg-turbo as a rule, so
that their pixels are the same; whether they are here is tried before the first image.
"""

import io
from collections.abc import Callable
from functools import cache

import numpy as np
from PIL import ExifTags, Image
from PIL.JpegImagePlugin import JpegImageFile, get_sampling

Decoder = Callable[..., np.ndarray]

COLOURS = {"L": "GRAY", "RGB": "RGB"}  # simplejpeg's names by Pillow's
SAMPLINGS = {"L": (-1,), "RGB": (0, 1, 2)}  # of the chroma: none, 4:4:4, 4:2:2, 4:2:0


def pixels(image: Image.Image, mode: str, out: np.ndarray | None = None) -> np.ndarray | None:
    """The pixels uint8 [H, W, C] of an opened image, or None where Pillow has to decode it.

    They are in `out` where that has their shape and holds them in one piece.
    """
    if not isinstance(image, JpegImageFile) or not _is_plain(image, mode):
        return None
    decoder = agreeing()
    return None if decoder is None else _decoded(image, decoder, out)


@cache
def agreeing() -> Decoder | None:
    """The decoder of simplejpeg, if it is installed and gives the pixels that Pillow gives here."""
    try:
        from simplejpeg import decode_jpeg
    except ImportError:
        return None
    noise = np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8)
    for mode, samplings in SAMPLINGS.items():
        for sampling in samplings:
            file = io.BytesIO()
            Image.fromarray(noise).convert(mode).save(file, "JPEG", subsampling=sampling)
            file.seek(0)
            with JpegImageFile(file) as image:
                found, truth = _decoded(image, decode_jpeg), np.asarray(image)
            if found is None or not np.array_equal(found, truth.reshape(37, 53, -1)):
                return None
    return decode_jpeg


def _is_plain(image: JpegImageFile, mode: str) -> bool:
    """Whether an opened image is a baseline JPEG of this mode, upright, and of a kind tried."""
    return (
        image.format == "JPEG"  # an MPO is left to Pillow
        and image.mode == mode
        and "progressive" not in image.info
        and get_sampling(image) in SAMPLINGS[mode]
        and image.getexif().get(ExifTags.Base.Orientation, 1) == 1
    )


def _decoded(
    image: JpegImageFile, decoder: Decoder, out: np.ndarray | None = None
) -> np.ndarray | None:
    """The pixels of an opened JPEG of the size that its header gave, or None."""
    if image.fp is None:  # Pillow has decoded it already
        return None
    shape = (image.height, image.width, len(image.getbands()))
    if out is None or out.shape != shape or not out.flags.c_contiguous:
        out = np.empty(shape, np.uint8)
    image.fp.seek(0)
    try:
        found = decoder(image.fp.read(), COLOURS[image.mode], buffer=out)  # never a larger image
    except ValueError:  # an error or a warning of libjpeg-turbo
        return None
    return out if found.shape == out.shape else None
