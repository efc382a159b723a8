"""The picks table: what every particle list becomes in memory.

One row per pick. Columns ``z, y, x`` are float64 voxels, 0-based, with voxel centres at integers;
``score`` is a float, NaN where a list gives none. ``n_voxels``, ``label``, ``class_name``,
``class_number``, ``tomogram_name``, ``tomogram_number`` and the orientation (`orientation.ANGLES`)
are optional, and columns that we do not know are kept.

A `TomogramFrame` holds what some files need besides: where voxel 0 lies in Å.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..core.errors import ConfigError, PicksFormatError, SpacingError
from .endings import WARP_VOXEL_SIZE

if TYPE_CHECKING:
    import pandas as pd

    from ..core.geometry import Vec

__all__ = [
    "Centre",
    "TomogramFrame",
    "by_falling_score",
    "check_one_tomogram",
    "checked_picks",
    "make_picks",
    "named_by_number",
    "of_class",
    "of_tomogram",
    "texts_of",
    "warn_of_strays",
    "whole_numbers",
]

_log = logging.getLogger(__name__)

_SUFFIX = re.compile(
    rf"({WARP_VOXEL_SIZE})?(\.(tomostar|mrcs?|rec|st|map|em|zarr|gz|bz2))+$|{WARP_VOXEL_SIZE}$",
    re.IGNORECASE,
)
"""Endings that do not tell tomograms apart, also Warp's voxel size (``TS_1_10.00Apx.mrc``)."""

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

    def need_shape(
        self, where: object, why: str = "positions count from the tomogram's centre"
    ) -> Vec:
        """Return the shape in voxels, or raise `PicksFormatError` that says what to pass."""
        if self.shape is None:
            raise PicksFormatError(
                f"{where}: {why} and its shape is not known; "
                "pass tomogram_shape (--tomogram-shape Z,Y,X)"
            )
        return self.shape

    def need_pixel_size(self, where: object) -> float:
        """Return the unbinned pixel size in Å, or raise `SpacingError`."""
        if self.tilt_series_pixel_size_angstrom is None:
            raise SpacingError(
                f"{where}: positions are in unbinned pixels, whose size is not known; pass "
                "tilt_series_pixel_size_angstrom (--pixel-size-angstrom; the voxel spacing if the "
                "tomogram is not binned)"
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


def _stem(name: str) -> str:
    return _SUFFIX.sub("", re.split(r"[\\/]", name)[-1])


def _folder(name: str) -> str:
    return "/".join(re.split(r"[\\/]", name)[:-1])


def of_tomogram(picks: pd.DataFrame, name: str | None, where: object) -> pd.DataFrame:
    """Return the picks of one tomogram, under the name asked for; all of them without a name.

    "TS_1" also means "TS_1.tomostar", "TS_1_10.00Apx.mrc" and "folder/TS_1.mrc", but not those of
    two folders. A list that numbers its tomograms (Dynamo, motl) is asked by number, "116", or by
    number and the name it is to have, "116=TS_1", which a list with names takes as "TS_1". A list
    that neither names nor numbers several tomograms is taken to be of the one asked for.

    Raises
    ------
    PicksFormatError
        Where the list has picks, but none of this tomogram or of several that it could be, or only
        numbers to choose by.

    Examples
    --------
    >>> picks = make_picks([[1, 2, 3], [4, 5, 6]], tomogram_name=["TS_1.tomostar", "TS_11"])
    >>> of_tomogram(picks, "TS_1", "a.star")[["z", "tomogram_name"]].to_numpy().tolist()
    [[1.0, 'TS_1']]
    >>> picks = make_picks([[1, 2, 3], [4, 5, 6]], tomogram_number=[2, 116])
    >>> of_tomogram(picks, "116=TS_1", "a.tbl")[["z", "tomogram_name"]].to_numpy().tolist()
    [[4.0, 'TS_1']]
    """
    if name is None or picks.empty:
        return picks
    if "tomogram_name" not in picks.columns:
        return _of_number(picks, name, where) if "tomogram_number" in picks.columns else picks
    names = picks["tomogram_name"].astype(str)
    number, equals, called = name.partition("=")
    if equals and number.strip().isdecimal() and _stem(name) not in map(_stem, names.unique()):
        name = called  # a number and a name, for a numbered list beside this one
    wanted = _stem(name)
    alike = sorted({one for one in names if _stem(one) == wanted})
    chosen = [name] if name in alike else alike
    if len({_folder(one) for one in chosen} - {""}) > 1:
        raise PicksFormatError(
            f"{where}: expected one tomogram called {name!r}, found {', '.join(chosen[:3])}; "
            "pass one of these as tomogram_name"
        )
    kept = picks[names.isin(chosen)].reset_index(drop=True)
    if kept.empty:
        found = sorted(set(names))
        raise PicksFormatError(
            f"{where}: expected particles of tomogram {name!r}, found {len(found)} others "
            f"({', '.join(found[:3])}, ...); pass one of these as tomogram_name, or none "
            "(a run and `train` take the name of the tomogram in their table)"
        )
    return kept.assign(tomogram_name=name)


def _of_number(picks: pd.DataFrame, name: str, where: object) -> pd.DataFrame:
    """Return the picks of a numbered tomogram; all, where there is one and it is not asked for."""
    numbers = picks["tomogram_number"].to_numpy(np.float64)
    there = sorted({int(n) for n in numbers[np.isfinite(numbers)]})
    asked, equals, called = name.partition("=")
    if not equals and len(there) < 2:
        return picks
    if not asked.strip().isdecimal() or int(asked) not in there:
        some = ", ".join(map(str, there[:5])) + (", ..." if len(there) > 5 else "")
        raise PicksFormatError(
            f"{where}: expected the number of one of its {len(there)} tomograms ({some}), which "
            f"have no names there, found {name!r}; pass {there[0]}, or {there[0]}=NAME to name it "
            "(--tomogram-name)"
        )
    kept = picks[numbers == int(asked)].reset_index(drop=True)
    return kept.assign(tomogram_name=called if equals else name)


def check_one_tomogram(picks: pd.DataFrame, where: object, what_helps: str) -> None:
    """Refuse a list with picks of several tomograms.

    Raises
    ------
    PicksFormatError
        With some of the names, or numbers, and what helps.

    Examples
    --------
    >>> picks = make_picks([[1, 2, 3], [4, 5, 6]], tomogram_number=[2, 116])
    >>> check_one_tomogram(picks, "a.tbl", "split it")
    Traceback (most recent call last):
    ...
    deepict_dask.core.errors.PicksFormatError: a.tbl: expected picks of one tomogram, found 2 \
(2, 116, ...); split it
    """
    column = "tomogram_name" if "tomogram_name" in picks.columns else "tomogram_number"
    names = [
        f"{one:g}" if isinstance(one, float) else str(one)
        for one in sorted(set(picks[column].dropna()) if column in picks.columns else ())
    ]
    if len(names) > 1:
        raise PicksFormatError(
            f"{where}: expected picks of one tomogram, found {len(names)} "
            f"({', '.join(names[:3])}, ...); {what_helps}"
        )


def whole_numbers(values: Any) -> np.ndarray[Any, Any]:
    """Return numbers as integers where nothing is lost by it.

    Examples
    --------
    >>> whole_numbers([1.0, 2.0]).tolist(), whole_numbers([1.5, float("nan")]).tolist()
    ([1, 2], [1.5, nan])
    """
    numbers = np.asarray(values, np.float64)
    # beyond 2**53 not every whole number is a float
    if (np.abs(numbers) < 2**53).all() and (numbers == np.rint(numbers)).all():
        return numbers.astype(np.int64)
    return numbers


def named_by_number(picks: pd.DataFrame) -> pd.DataFrame:
    """Return picks of several classes that have numbers alone with these as names.

    So that a class of a list that knows no names can be chosen, compared and merged. A list of one
    class needs no name, and may be compared with any.

    Examples
    --------
    >>> named_by_number(make_picks([[1, 2, 3]] * 2, class_number=[1, 2])).class_name.tolist()
    ['1', '2']
    """
    if "class_name" in picks.columns or "class_number" not in picks.columns:
        return picks
    if picks["class_number"].nunique() < 2:
        return picks
    return picks.assign(class_name=texts_of(picks["class_number"]))


def texts_of(column: pd.Series[Any]) -> list[str]:
    """Return names or numbers as texts, empty where there is none.

    Examples
    --------
    >>> import pandas as pd
    >>> texts_of(pd.Series([1, None, 2]))  # an empty cell makes numbers floats
    ['1', '', '2']
    """
    if column.dtype.kind in "iuf":
        return ["" if np.isnan(n) else f"{n:g}" for n in column]
    return [str(text) for text in column.fillna("")]


def of_class(
    picks: pd.DataFrame, class_name: str | None, where: object
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Say for each pick whether it is of a class, by name or by number; of any for None.

    Raises
    ------
    ConfigError
        The list has no such class.

    Examples
    --------
    >>> of_class(make_picks([[1, 2, 3]] * 2, class_number=[1, 12]), "12", "a.xml").tolist()
    [False, True]
    """
    if class_name is None:
        return np.ones(len(picks), bool)
    known = [name for name in ("class_name", "class_number") if name in picks.columns]
    names = np.array(texts_of(picks[known[0]]) if known else [], str)
    if not class_name or class_name not in names:
        found = ", ".join(filter(None, np.unique(names))) or "no classes"
        raise ConfigError(
            f"{where}: --class {class_name}: expected a class of the list, found {found}"
        )
    chosen: np.ndarray[Any, np.dtype[np.bool_]] = names == class_name
    return chosen


def warn_of_strays(picks: pd.DataFrame, frame: TomogramFrame, where: object) -> None:
    """Say how many picks lie outside the tomogram: the usual sign of a wrong voxel spacing."""
    if frame.shape is None:
        return
    zyx = picks[["z", "y", "x"]].to_numpy()
    strays = int(((zyx < -0.5) | (zyx > [size - 0.5 for size in frame.shape])).any(axis=1).sum())
    if strays:
        _log.warning(
            "%s: %d of %d picks lie outside the tomogram of %s voxels (zyx); "
            "check the voxel spacing and the shape",
            where, strays, len(picks), frame.shape,
        )  # fmt: skip
