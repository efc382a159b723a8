"""Optics groups: what a STAR file says once for many particles.

Read: each particle gets the columns of its group, so that a table of picks says all by itself and
survives any format. Written: particles whose optics columns agree are one group again. Groups keep
their numbers where these tell them apart; lists that were merged may use one number for two things,
then all are numbered anew.

`pixel_sizes` finds the size of the pixels that uncentred coordinates count.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import PicksFormatError, SpacingError
from .text_table import is_number, significant

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

    from .picks_table import TomogramFrame

__all__ = [
    "GROUP",
    "OPTICS",
    "TILT_SERIES_PIXEL",
    "completed_optics",
    "gathered_optics",
    "numbers_of",
    "pixel_sizes",
    "with_optics",
]

Numbers = np.ndarray[Any, np.dtype[np.float64]]

_log = logging.getLogger(__name__)
_TOLERANCE = 0.01
GROUP = "rlnOpticsGroup"
TILT_SERIES_PIXEL = "rlnTomoTiltSeriesPixelSize"
OPTICS = (
    "rlnOpticsGroupName", "rlnMtfFileName", "rlnMicrographOriginalPixelSize", "rlnVoltage",
    "rlnSphericalAberration", "rlnAmplitudeContrast", TILT_SERIES_PIXEL, "rlnImagePixelSize",
    "rlnImageSize", "rlnImageDimensionality", "rlnTomoSubtomogramBinning",
    "rlnCtfDataAreCtfPremultiplied", "rlnBeamTiltX", "rlnBeamTiltY", "rlnOddZernike",
    "rlnEvenZernike", "rlnMagMat00", "rlnMagMat01", "rlnMagMat10", "rlnMagMat11",
)  # fmt: skip
"""Columns that RELION keeps in the optics block."""


def numbers_of(particles: pd.DataFrame, names: Sequence[str], where: object) -> Numbers:
    """Return columns as (n, names) floats; `PicksFormatError` where one holds a word."""
    try:
        return particles[list(names)].to_numpy(np.float64)
    except (TypeError, ValueError) as error:
        raise PicksFormatError(
            f"{where}: expected numbers in {', '.join(names)}, found {error}; correct the file"
        ) from error


def with_optics(
    particles: pd.DataFrame, optics: pd.DataFrame | None, where: object
) -> pd.DataFrame:
    """Return particles with the columns of their optics groups, which come before their own.

    Where there is one group, it need not be named.

    Raises
    ------
    PicksFormatError
        Where a particle's group is not among the groups.

    Examples
    --------
    >>> import pandas as pd
    >>> optics = pd.DataFrame({"rlnOpticsGroup": [1, 2], "rlnVoltage": [200, 300]})
    >>> with_optics(pd.DataFrame({"rlnOpticsGroup": [2, 1]}), optics, "a.star").rlnVoltage.tolist()
    [300, 200]
    """
    if optics is None or GROUP not in optics.columns:
        return particles
    if GROUP not in particles.columns:
        if len(optics) != 1:
            return particles
        particles = particles.assign(**{GROUP: optics[GROUP].tolist() * len(particles)})
    rows = optics.drop_duplicates(GROUP)
    rows = rows.assign(**{GROUP: _keys(rows[GROUP])}).set_index(GROUP)
    groups = _keys(particles[GROUP])
    missing = sorted(set(groups) - set(rows.index))
    if missing:
        raise PicksFormatError(
            f"{where}: expected the optics groups {', '.join(rows.index)}, found a particle "
            f"of group {missing[0]}; add it to data_optics"
        )
    rows = rows.loc[groups].reset_index(drop=True)
    kept = particles.drop(columns=[name for name in rows.columns if name in particles.columns])
    return kept.join(rows)


def _keys(groups: pd.Series[Any]) -> pd.Series[Any]:
    """Return group numbers as texts, 1.0 as 1."""
    texts = {g: significant(float(g)) if is_number(str(g)) else str(g) for g in groups.unique()}
    return groups.map(texts).fillna("nan")


def pixel_sizes(particles: pd.DataFrame, frame: TomogramFrame, where: object) -> Numbers | None:
    """Return for each particle the size in Å of the pixels that coordinates count, if known.

    RELION 4 and 5 say it themselves; RELION 3.0 gives a detector pixel in µm and a magnification;
    RELION 3.1 files of Warp count pixels of the exported images. What the frame says comes first.

    Raises
    ------
    SpacingError
        Where a size is no positive number.
    """
    sizes = _stated_sizes(particles, where)
    given = frame.tilt_series_pixel_size_angstrom
    if given is not None:
        _warn_of_other_sizes(sizes, given, where)
        return np.full(len(particles), given)
    if sizes is None or np.isnan(sizes).all():
        return None
    if not (np.isfinite(sizes) & (sizes > 0)).all():
        row = int(np.argmin(np.isfinite(sizes) & (sizes > 0)))
        raise SpacingError(
            f"{where}: expected a positive pixel size for each particle, found {sizes[row]} for "
            f"particle {row + 1}; correct the file or pass tilt_series_pixel_size_angstrom "
            "(--pixel-size-angstrom)"
        )
    return sizes


def _warn_of_other_sizes(stated: Numbers | None, given: float, where: object) -> None:
    """Say where a file says another size than the one that is used."""
    if stated is None:
        return
    known = stated[np.isfinite(stated) & (stated > 0)]
    if len(known) and np.abs(known / given - 1).max() > _TOLERANCE:
        _log.warning(
            "%s: counts pixels of %.4g Å, but %.4g Å is given and used (--pixel-size-angstrom)",
            where, known[0], given,
        )  # fmt: skip


def _stated_sizes(particles: pd.DataFrame, where: object) -> Numbers | None:
    detector = "rlnDetectorPixelSize"
    if TILT_SERIES_PIXEL not in particles.columns and detector in particles.columns:
        magnified = np.full(len(particles), 1e4)
        if "rlnMagnification" in particles.columns:
            magnified = numbers_of(particles, ["rlnMagnification"], where)[:, 0]
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(numbers_of(particles, [detector], where)[:, 0] * 1e4 / magnified)
    names = (TILT_SERIES_PIXEL, "rlnImagePixelSize", "rlnPixelSize")
    name = next((name for name in names if name in particles.columns), None)
    return None if name is None else numbers_of(particles, [name], where)[:, 0]


def completed_optics(picks: pd.DataFrame) -> pd.DataFrame:
    """Return picks where those that say nothing of optics have those of the others, if all agree.

    Such picks come from another list, of the same tomograms.

    Examples
    --------
    >>> import pandas as pd
    >>> completed_optics(pd.DataFrame({"rlnVoltage": [300, None]})).rlnVoltage.tolist()
    [300.0, 300.0]
    """
    names = [name for name in (GROUP, *OPTICS) if name in picks.columns]
    telling = picks[names[1:] if len(names) > 1 and names[0] == GROUP else names]
    silent = (telling.isna() | (telling == "")).all(axis=1)
    if not names or not silent.any() or silent.all():
        return picks
    known = picks.loc[~silent, names].drop_duplicates()
    if len(known) > 1:
        return picks
    return picks.assign(**{name: picks[name].where(~silent, known[name].iat[0]) for name in names})


def gathered_optics(
    picks: pd.DataFrame, own: Mapping[str, Any]
) -> tuple[pd.DataFrame, np.ndarray[Any, np.dtype[np.int64]]]:
    """Return the optics block, and the group of each pick.

    Parameters
    ----------
    picks
        Whose columns of `OPTICS`, if any, are gathered.
    own
        Values that hold for all groups, before those of the picks.

    Examples
    --------
    >>> import pandas as pd
    >>> block, groups = gathered_optics(pd.DataFrame({"rlnVoltage": [300, 200, 300]}), {})
    >>> block.to_dict("list")["rlnVoltage"], groups.tolist()
    ([300, 200], [1, 2, 1])
    """
    import pandas as pd

    names = [name for name in (GROUP, *OPTICS) if name in picks.columns]
    if not names or picks.empty:
        alone = {GROUP: [1], "rlnOpticsGroupName": ["opticsGroup1"]}
        return pd.DataFrame(alone | {name: [value] for name, value in own.items()}), np.ones(
            len(picks), np.int64
        )
    keys = picks[names].groupby(names, dropna=False, sort=False).ngroup().to_numpy()
    _, first = np.unique(keys, return_index=True)
    block = picks[names].iloc[first].reset_index(drop=True).assign(**own)
    numbers = _group_numbers(block)
    block = block.drop(columns=GROUP, errors="ignore")
    block.insert(0, GROUP, numbers)
    if "rlnOpticsGroupName" not in block.columns:
        block.insert(1, "rlnOpticsGroupName", [f"opticsGroup{number}" for number in numbers])
    return block.sort_values(GROUP, ignore_index=True), numbers[keys]


def _group_numbers(block: pd.DataFrame) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the groups' own numbers where these tell them apart, else 1, 2, 3."""
    anew = np.arange(1, len(block) + 1)
    if GROUP not in block.columns:
        return anew
    try:
        own = block[GROUP].to_numpy(np.float64)
    except (TypeError, ValueError):
        return anew
    usable = np.isfinite(own).all() and (own == np.rint(own)).all() and (own >= 1).all()
    if not usable or len(set(own)) < len(own):
        return anew
    return own.astype(np.int64)
