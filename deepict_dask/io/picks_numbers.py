"""Numbers for what formats without names number: classes, tomograms, particles."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from .picks_table import whole_numbers

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["class_numbers", "loses_class_names", "particle_numbers", "tomogram_numbers"]

_log = logging.getLogger(__name__)


def class_numbers(picks: pd.DataFrame) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return a class number for each pick: its own, that of its class's name, or 1.

    Names are numbered from 1 in alphabetical order, which a warning says where there are several;
    also where picks of several lists have numbers of their own that mean different names.

    Examples
    --------
    >>> from deepict_dask.io.picks_table import make_picks
    >>> class_numbers(make_picks([[1, 2, 3]] * 2, class_name=["ribosome", "FAS"])).tolist()
    [2, 1]
    """
    return _numbers_of(picks, "class_number", "class_name", 1)


def loses_class_names(picks: pd.DataFrame) -> bool:
    """Say whether numbers alone would lose the names of classes, and nobody is told.

    Several names without fitting numbers of their own are numbered, which `class_numbers` says.

    Examples
    --------
    >>> from deepict_dask.io.picks_table import make_picks
    >>> loses_class_names(make_picks([[1, 2, 3]], class_name=["ribosome"]))
    True
    """
    if "class_name" not in picks.columns:
        return False
    if "class_number" not in picks.columns:
        return bool(picks["class_name"].nunique() == 1)
    return bool((picks["class_name"].astype(str) != picks["class_number"].astype(str)).any())


def tomogram_numbers(picks: pd.DataFrame, default: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return a tomogram number for each pick, as `class_numbers`; ``default`` for one tomogram."""
    return _numbers_of(picks, "tomogram_number", "tomogram_name", default)


def _numbers_of(picks: pd.DataFrame, number: str, name: str, default: int) -> Any:
    names: list[str] = []
    if name in picks.columns:
        names = picks[name].fillna("").astype(str).tolist()
    if number in picks.columns:
        own = picks[number].to_numpy(np.float64)
        if len(set(names)) < 2 or _one_to_one(names, own):
            return np.nan_to_num(own, nan=default).astype(np.int64)
    legend = {text: place for place, text in enumerate(sorted(set(names)), 1)}
    if len(legend) < 2:
        return np.full(len(picks), default, np.int64)
    meaning = ", ".join(f"{place} = {text or 'none'}" for text, place in legend.items())
    _log.warning("%ss are written as numbers: %s", name.replace("_", " "), meaning)
    return np.array([legend[text] for text in names], np.int64)


def _one_to_one(names: list[str], numbers: np.ndarray[Any, np.dtype[np.float64]]) -> bool:
    """Say whether each name has one number and each number one name, as lists merged may not."""
    if np.isnan(numbers).any():
        return False
    # without a name a number stands for itself
    pairs = {(text or f"#{n:g}", n) for text, n in zip(names, numbers.tolist(), strict=True)}
    return len(pairs) == len({text for text, _ in pairs}) == len({n for _, n in pairs})


def particle_numbers(picks: pd.DataFrame) -> np.ndarray[Any, Any]:
    """Return a number for each pick: its own, or 1 and so on where some have none.

    Examples
    --------
    >>> from deepict_dask.io.picks_table import make_picks
    >>> particle_numbers(make_picks([[1, 2, 3]] * 2, particle_number=[7, 3])).tolist()
    [7, 3]
    >>> particle_numbers(make_picks([[1, 2, 3]] * 2, particle_number=[7, np.nan])).tolist()
    [1, 2]
    """
    if "particle_number" in picks.columns:
        own = picks["particle_number"].to_numpy(np.float64)
        if not np.isnan(own).any():
            return whole_numbers(own)
    return np.arange(1, len(picks) + 1)
