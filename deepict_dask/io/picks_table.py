"""The picks table: what every particle list becomes in memory.

One row per pick. Columns ``z, y, x`` are float64 voxels, 0-based, with voxel centres at integers;
``score`` is a float, NaN where a list gives none. ``n_voxels``, ``label``, ``class_name`` and
``tomogram_name`` are optional, and columns that we do not know are kept.

A `TomogramFrame` holds what some files need besides: where voxel 0 lies in Å.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..core.errors import PicksFormatError, SpacingError

if TYPE_CHECKING:
    import pandas as pd

    from ..core.geometry import Vec

__all__ = ["Centre", "TomogramFrame", "by_falling_score", "checked_picks", "make_picks"]

Centre = Literal["half", "half-minus-one"]
"""Where centred coordinates have their origin; see `deepict_dask.io.star`."""


@dataclass(frozen=True, kw_only=True)
class TomogramFrame:
    """The tomogram that a list of picks belongs to, as far as the caller knows it.

    Examples
    --------
    >>> TomogramFrame(voxel_spacing_angstrom=10.0).need_spacing("picks.star")
    10.0
    >>> TomogramFrame().need_spacing("picks.star")
    Traceback (most recent call last):
    ...
    deepict_dask.core.errors.SpacingError: picks.star: positions are in Å and the size of a voxel \
is not known; pass voxel_spacing_angstrom (--voxel-spacing-angstrom)
    """

    voxel_spacing_angstrom: float | None = None
    """Edge of a voxel in Å."""
    shape: Vec | None = None
    """Voxels on z, y, x."""
    name: str | None = None
    """The tomogram's name in the list (rlnTomoName)."""
    tilt_series_pixel_size_angstrom: float | None = None
    """Edge of an unbinned pixel in Å; overrides what a file says of it."""
    centre: Centre = "half"
    """Origin of centred coordinates."""

    def __post_init__(self) -> None:
        for name in ("voxel_spacing_angstrom", "tilt_series_pixel_size_angstrom"):
            value = getattr(self, name)
            if value is not None and not (np.isfinite(value) and value > 0):
                raise SpacingError(f"{name}: expected a positive number of Å, found {value}")
        if self.shape is not None and (len(self.shape) != 3 or min(self.shape) < 1):
            raise SpacingError(f"tomogram_shape: expected three sizes Z,Y,X, found {self.shape}")

    def need_spacing(self, where: object) -> float:
        """Return the voxel spacing in Å, or raise `SpacingError` that says what to pass."""
        if self.voxel_spacing_angstrom is None:
            raise SpacingError(
                f"{where}: positions are in Å and the size of a voxel is not known; "
                "pass voxel_spacing_angstrom (--voxel-spacing-angstrom)"
            )
        return self.voxel_spacing_angstrom

    def need_shape(self, where: object) -> Vec:
        """Return the shape in voxels, or raise `PicksFormatError` that says what to pass."""
        if self.shape is None:
            raise PicksFormatError(
                f"{where}: positions count from the tomogram's centre and its shape is not known; "
                "pass tomogram_shape (--tomogram-shape Z,Y,X)"
            )
        return self.shape

    def need_pixel_size(self, where: object) -> float:
        """Return the unbinned pixel size in Å, or raise `SpacingError`."""
        if self.tilt_series_pixel_size_angstrom is None:
            raise SpacingError(
                f"{where}: positions are in unbinned pixels, whose size is not known; pass "
                "tilt_series_pixel_size_angstrom (the voxel spacing if the tomogram is not binned)"
            )
        return self.tilt_series_pixel_size_angstrom


def make_picks(zyx: Any, score: Any = None, **columns: Any) -> pd.DataFrame:
    """Return a picks table.

    Parameters
    ----------
    zyx
        Positions in voxels, (n, 3), 0-based.
    score
        One number per pick; NaN for all where absent.
    **columns
        Further columns.

    Examples
    --------
    >>> make_picks([[5, 88, 9]], [0.75], label=[1]).to_dict("records")
    [{'z': 5.0, 'y': 88.0, 'x': 9.0, 'score': 0.75, 'label': 1}]
    """
    import pandas as pd

    points = np.asarray(zyx, np.float64).reshape(-1, 3)
    scores = np.full(len(points), np.nan) if score is None else np.asarray(score, np.float64)
    known = {"z": points[:, 0], "y": points[:, 1], "x": points[:, 2], "score": scores}
    return pd.DataFrame({**known, **columns})


def checked_picks(table: pd.DataFrame, where: object = "picks") -> pd.DataFrame:
    """Return a copy with rows numbered from 0, float64 positions and a score column.

    Raises
    ------
    PicksFormatError
        Where a position column is missing or holds something that is no finite number.
    """
    missing = [name for name in ("z", "y", "x") if name not in table.columns]
    if missing:
        raise PicksFormatError(
            f"{where}: expected columns z, y, x (voxels), found {list(table.columns)}; "
            f"add {', '.join(missing)}"
        )
    checked = table.reset_index(drop=True)
    if "score" not in checked.columns:
        checked = checked.assign(score=np.nan)
    try:
        checked = checked.astype(dict.fromkeys(("z", "y", "x", "score"), np.float64))
    except (TypeError, ValueError) as error:
        raise PicksFormatError(
            f"{where}: expected numbers in z, y, x and score, found {error}; correct the table"
        ) from error
    bad = ~np.isfinite(checked[["z", "y", "x"]].to_numpy()).all(axis=1)
    if bad.any():
        raise PicksFormatError(
            f"{where}: expected finite positions, found {int(bad.sum())} without, "
            f"the first in row {int(np.argmax(bad))}; remove such picks"
        )
    return checked


def by_falling_score(table: pd.DataFrame) -> pd.DataFrame:
    """Return the picks by falling score; ties by label if there is one, then in raster order.

    The order does not depend on the order of the rows given. Picks without a score come last.

    Examples
    --------
    >>> picks = make_picks([[2, 0, 0], [1, 0, 0], [0, 0, 0]], [0.5, 0.5, 0.1])
    >>> by_falling_score(picks).z.tolist()
    [1.0, 2.0, 0.0]
    """
    keys = [table[name].to_numpy() for name in ("x", "y", "z")]
    if "label" in table.columns:
        keys.append(table["label"].to_numpy())
    order = np.lexsort([*keys, -table["score"].to_numpy(np.float64)])
    return table.iloc[order].reset_index(drop=True)
