"""Which tomogram of a run is meant, where a source holds several of each.

1. Each candidate has labels, such as a voxel spacing and a type of reconstruction.
2. ``SOURCE#LABEL`` (or ``SOURCE#LABEL/LABEL``) keeps the candidates that carry the labels.
3. One candidate of a run is taken. Several are an error that lists them: which of two
   reconstructions a network should see is not ours to guess. A run without any is left out, and
   that is said.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

__all__ = ["Candidate", "Chosen", "choose", "some_of"]


@dataclass(frozen=True)
class Candidate:
    """One tomogram of a run.

    Examples
    --------
    >>> from pathlib import Path
    >>> Candidate(("10.000", "wbp"), Path("wbp.zarr")).label
    '10.000/wbp'
    """

    labels: tuple[str, ...]
    path: Path
    voxel_spacing_angstrom: float | None = None
    only_if_named: bool = False
    """It is no tomogram to analyse, such as a half; taken only where it is asked for."""

    @property
    def label(self) -> str:
        """All labels as one text."""
        return "/".join(self.labels)

    def carries(self, wanted: str) -> bool:
        """Say whether the candidate has all labels of a text; numbers are compared as numbers."""
        parts = [part for part in wanted.split("/") if part]
        return all(any(_same(part, label) for label in self.labels) for part in parts)


@dataclass(frozen=True)
class Chosen:
    """The candidate of each run that has one, and what there is to say."""

    of_run: dict[str, Candidate]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def _same(wanted: str, label: str) -> bool:
    plain = wanted.lower().removeprefix("voxelspacing")
    try:
        return float(plain) == float(label)
    except ValueError:
        return plain == label.lower()


def choose(source: Path, runs: Mapping[str, Sequence[Candidate]], wanted: str) -> Chosen:
    """Choose one tomogram of each run.

    Parameters
    ----------
    source
        For messages.
    runs
        Candidates by the name of the run.
    wanted
        Labels, with slashes between them; empty where the user named none.

    Raises
    ------
    ConfigError
        A run has several, or no run has one.

    Examples
    --------
    >>> from pathlib import Path
    >>> kinds = ("wbp", "denoised")
    >>> runs = {"TS_1": [Candidate(("10.000", kind), Path(kind)) for kind in kinds]}
    >>> choose(Path("project"), runs, "wbp").of_run["TS_1"].path.name
    'wbp'
    >>> choose(Path("project"), runs, "")
    Traceback (most recent call last):
    ...
    deepict_dask.core.errors.ConfigError: project: expected one tomogram of each run, ...
    """
    fitting = {name: _fitting(found, wanted) for name, found in runs.items()}
    several = {name: found for name, found in fitting.items() if len(found) > 1}
    if several:
        raise _too_many(source, several, wanted)
    taken = {name: found[0] for name, found in fitting.items() if found}
    if not taken:
        raise _none(source, runs, wanted)
    absent = [name for name in runs if name not in taken]
    counts = Counter(candidate.label for candidate in taken.values())
    note = "taken: " + ", ".join(f"{label} ({n})" for label, n in sorted(counts.items()))
    left_out = f"left out, without {wanted or 'a tomogram'}: {some_of(absent)}"
    return Chosen(taken, (note,), (left_out,) if absent else ())


def _fitting(found: Sequence[Candidate], wanted: str) -> list[Candidate]:
    if wanted:
        return [candidate for candidate in found if candidate.carries(wanted)]
    return [candidate for candidate in found if not candidate.only_if_named]


def _too_many(source: Path, several: Mapping[str, Sequence[Candidate]], wanted: str) -> ConfigError:
    name, found = next(iter(several.items()))
    labels = sorted(candidate.label for candidate in found)
    others = f" (and in {len(several) - 1} more)" if len(several) > 1 else ""
    asked = f"#{wanted}" if wanted else ""
    return ConfigError(
        f"{source}{asked}: expected one tomogram of each run, found {len(found)} of "
        f"{name}{others}: {', '.join(labels)}; say which, such as {source}#{labels[0]}"
    )


def _none(source: Path, runs: Mapping[str, Sequence[Candidate]], wanted: str) -> ConfigError:
    labels = sorted({candidate.label for found in runs.values() for candidate in found})
    there = ", ".join(labels) or "none"
    hint = f"; say which, such as {source}#{labels[0]}" if labels else ""
    asked = f"tomograms with {wanted}" if wanted else "a tomogram"
    return ConfigError(f"{source}: expected {asked} in {len(runs)} runs, found {there}{hint}")


def some_of(names: Iterable[str], n: int = 3) -> str:
    """Return the first names of a list, and how many more there are.

    Examples
    --------
    >>> some_of(["a", "b", "c", "d"])
    'a, b, c and 1 more'
    """
    found = list(names)
    more = f" and {len(found) - n} more" if len(found) > n else ""
    return ", ".join(found[:n]) + more
