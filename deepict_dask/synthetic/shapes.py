"""Particles as signed distances in nm: negative inside, zero at the surface.

A shape is a function of points (zyx in the particle's own frame, nm) and knows the radius of a
sphere round its centre that holds it. Sizes of the wanted particles follow published structures:
a eukaryotic ribosome is some 25 nm across, in two unequal lobes; the fungal fatty acid synthase is
a hollow barrel of 26 by 22 nm with a wheel at its equator. The distractors have like masses, so
that density alone does not tell them apart: what is smaller is denser.

One shortcut: the distance to an ellipsoid is the usual first-order estimate, exact at the surface.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["SHAPES", "Shape"]

Floats = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Shape:
    """One kind of particle.

    Examples
    --------
    >>> centre = np.zeros((3, 1), np.float32)
    >>> SHAPES["ball"].distance(centre)
    array([-8.5], dtype=float32)
    """

    name: str
    radius_nm: float
    """Radius of a sphere round the centre that holds the particle."""
    density: float
    """Contrast of its inside; protein and RNA of a ribosome are 1."""
    distance: Callable[[Floats], Floats]
    """Signed distance in nm of float32 points of shape (3, ...), zyx in the particle's frame."""


def _ellipsoid(points: Floats, semi_axes: tuple[float, float, float]) -> Floats:
    axes = np.asarray(semi_axes, np.float32).reshape(3, *[1] * (points.ndim - 1))
    scaled = points / axes
    length = np.sqrt((scaled**2).sum(0))
    slope = np.sqrt(((scaled / axes) ** 2).sum(0))
    return length * (length - 1) / np.maximum(slope, 1e-6)


def _shifted(points: Floats, centre: tuple[float, float, float]) -> Floats:
    return points - np.asarray(centre, np.float32).reshape(3, *[1] * (points.ndim - 1))


def _ribosome(points: Floats) -> Floats:
    large = _ellipsoid(_shifted(points, (-2.5, 0.0, 0.0)), (9.0, 10.5, 10.5))
    small = _ellipsoid(_shifted(points, (9.0, 0.0, 1.0)), (4.5, 6.5, 9.5))
    return np.minimum(large, small)


def _fas(points: Floats) -> Floats:
    outer = _ellipsoid(points, (13.0, 11.0, 11.0))
    shell = np.abs(outer + 1.6) - 1.6
    wheel = np.maximum(np.abs(points[0]) - 1.5, outer)
    return np.minimum(shell, wheel)


def _dehydrogenase(points: Floats) -> Floats:
    # the core of pyruvate dehydrogenase is a hollow dodecahedron
    return np.abs(np.sqrt((points**2).sum(0)) - 9.5) - 2.5


def _ball(points: Floats) -> Floats:
    return np.sqrt((points**2).sum(0)) - 8.5


def _disc(points: Floats) -> Floats:
    return np.maximum(np.hypot(points[1], points[2]) - 12.5, np.abs(points[0]) - 3.2)


def _rod(points: Floats) -> Floats:
    along = points[0] - np.clip(points[0], -8.5, 8.5)
    return np.sqrt(along**2 + points[1] ** 2 + points[2] ** 2) - 5.0


def _tetrahedron(points: Floats) -> Floats:
    corners = 4.3 * np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], np.float32)
    squares = [(_shifted(points, tuple(corner)) ** 2).sum(0) for corner in corners]
    return np.sqrt(np.minimum.reduce(squares)) - 5.5


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("ribosome", 14.6, 1.0, _ribosome),
        Shape("fas", 13.0, 1.15, _fas),
        Shape("ball", 8.5, 1.5, _ball),
        Shape("disc", 13.0, 1.35, _disc),
        Shape("rod", 13.5, 1.7, _rod),
        Shape("tetrahedron", 13.0, 1.45, _tetrahedron),
        Shape("mitoribosome", 14.6, 1.0, _ribosome),
        Shape("dehydrogenase", 12.0, 1.5, _dehydrogenase),
    )
}
"""Every particle by its name."""
