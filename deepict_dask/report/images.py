"""Pictures as data URIs: grey values as WebP, masks as PNG of one colour.

Grey values are cut at two percentiles that hold for all pictures of a tomogram, so that slices can
be compared. A mask is one bit a pixel; where it is empty there is no picture at all.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Contrast", "contrast_of", "grey_uri", "mask_uri", "thumbnail_uri"]

Array = np.ndarray[Any, Any]

_PERCENTILES = (0.5, 99.5)
_SAMPLE = 1 << 20
"""Pixels that are enough for percentiles."""
_QUALITY, _THUMBNAIL_QUALITY = 72, 45
_THUMBNAIL_PIXELS = 96


@dataclass(frozen=True)
class Contrast:
    """The values that are shown as black and as white."""

    black: float
    white: float

    def apply(self, image: Array) -> Array:
        """Return an image as uint8; what is not a number is black.

        Examples
        --------
        >>> Contrast(0, 2).apply(np.array([-1, 1, 5, np.nan])).tolist()
        [0, 127, 255, 0]
        """
        scaled = (np.nan_to_num(image, nan=self.black) - self.black) / (self.white - self.black)
        grey: Array = (np.clip(scaled, 0, 1) * 255).astype(np.uint8)
        return grey


def contrast_of(images: Array) -> Contrast:
    """Return black and white by percentiles of pixels that are numbers, a million of them.

    Examples
    --------
    >>> contrast_of(np.arange(1001.0))
    Contrast(black=5.0, white=995.0)
    >>> contrast_of(np.full(3, 7.0))
    Contrast(black=7.0, white=8.0)
    """
    sample = images.ravel()[:: max(1, images.size // _SAMPLE)]
    finite = sample[np.isfinite(sample)]
    if finite.size == 0:
        return Contrast(0.0, 1.0)
    black, white = (float(value) for value in np.percentile(finite, _PERCENTILES))
    return Contrast(black, white if white > black else black + 1)


def grey_uri(grey: Array) -> str:
    """Return a uint8 image as a data URI."""
    return _uri(grey, "webp", quality=_QUALITY, method=2)


def thumbnail_uri(grey: Array) -> str:
    """Return a uint8 image, made small, as a data URI of about 2 kB."""
    from PIL import Image

    picture = Image.fromarray(grey)
    picture.thumbnail((_THUMBNAIL_PIXELS, _THUMBNAIL_PIXELS))
    return _uri(np.asarray(picture), "webp", quality=_THUMBNAIL_QUALITY, method=4)


def mask_uri(mask: Array, colour: str) -> str | None:
    """Return a bool image in one colour on nothing, as a data URI; None where it is empty.

    Parameters
    ----------
    mask
        2D, bool.
    colour
        Such as ``#e69f00``.

    Examples
    --------
    >>> mask_uri(np.zeros((4, 4), bool), "#e69f00") is None
    True
    >>> mask_uri(np.eye(4, dtype=bool), "#e69f00")[:22]
    'data:image/png;base64,'
    """
    from PIL import Image

    if not mask.any():
        return None
    picture = Image.fromarray(mask.astype(np.uint8), mode="P")
    rgb = bytes.fromhex(colour.removeprefix("#"))
    picture.putpalette(bytes(3) + rgb)
    buffer = io.BytesIO()
    picture.save(buffer, "png", bits=1, transparency=b"\x00\xff")
    return _data_uri("png", buffer)


def _uri(grey: Array, kind: str, **options: Any) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, kind, **options)
    return _data_uri(kind, buffer)


def _data_uri(kind: str, buffer: io.BytesIO) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
