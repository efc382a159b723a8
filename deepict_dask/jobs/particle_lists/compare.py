"""Particle lists of several pickers: what they agree on, pair by pair and all together.

Pairs of lists are split (`deepict_dask.evaluate.compare`); the consensus of all is their merge with
the number of lists that each pick is in (`deepict_dask.particles.merge`).
"""

from __future__ import annotations

import itertools
import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...core.errors import ConfigError
from ...engine import StagedOutput, fingerprint, request_key
from ...evaluate.compare import compare_picks
from ...io.picks import read_picks, write_picks
from ...io.replace import replace_file
from ...particles.merge import merge_picks
from ..picking.outputs import versions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import pandas as pd

    from ...core.geometry import Vec
    from ...evaluate.compare import Comparison

log = logging.getLogger("deepict_dask")

__all__ = ["ComparedLists", "compare_lists", "names_of"]


@dataclass(frozen=True)
class ComparedLists:
    """What was found."""

    table: pd.DataFrame
    """One row for each pair of lists and class."""
    consensus: pd.DataFrame
    """Each particle once, with ``from_list`` (1 is the first) and ``n_lists``."""

    @property
    def counts(self) -> dict[int, int]:
        """Particles by the number of lists that have them, most lists first."""
        counted = self.consensus["n_lists"].value_counts()
        return {int(n): int(counted[n]) for n in sorted(counted.index, reverse=True)}


def names_of(sources: Sequence[Path]) -> list[str]:
    """Return different names for lists: the files', else their folders', else numbered.

    Examples
    --------
    >>> from pathlib import Path
    >>> names_of([Path("a.csv"), Path("b.star")]), names_of([Path("a/p.csv"), Path("b/p.csv")])
    (['a', 'b'], ['a', 'b'])
    """
    for names in ([p.stem for p in sources], [p.absolute().parent.name for p in sources]):
        if len(set(names)) == len(names):
            return names
    return [f"{path.stem}_{number}" for number, path in enumerate(sources, start=1)]


def compare_lists(
    sources: Sequence[Path],
    distance: float,
    target: Path | None = None,
    *,
    voxel_spacing_angstrom: float | None = None,
    tomogram_shape: Vec | None = None,
    tomogram_name: str | None = None,
    overwrite: bool = False,
) -> ComparedLists:
    r"""Compare particle lists of any format.

    Parameters
    ----------
    sources
        Two lists or more.
    distance
        Picks at most this far apart are one particle; voxels.
    target
        Folder to make, if any: ``compare.csv`` (the table), ``consensus.csv``, and for each pair
        of lists A and B ``A_and_B.csv``, ``A_not_B.csv``, ``B_not_A.csv``.
    voxel_spacing_angstrom, tomogram_shape, tomogram_name
        Of the tomogram, for formats that need them.
    overwrite
        Replace a folder that this made before.

    Raises
    ------
    ConfigError
        There are fewer than two lists.
    PicksFormatError
        A list cannot be read, or does not say its tomogram where another has several.
    OutputExistsError
        The folder exists.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> _ = (folder / "a.csv").write_text("9,9,9\n"), (folder / "b.csv").write_text("9,9,8\n")
    >>> compare_lists([folder / "a.csv", folder / "b.csv"], 2).counts
    {2: 1}
    """
    frame: dict[str, Any] = {
        "voxel_spacing_angstrom": voxel_spacing_angstrom, "tomogram_shape": tomogram_shape,
        "tomogram_name": tomogram_name,
    }  # fmt: skip
    tables = _read(sources, frame)
    _warn_of_classes(tables)
    found = _pair_by_pair(tables, distance)
    compared = ComparedLists(_joined(found), _consensus(list(tables.values()), distance))
    if target is not None:
        inputs = [fingerprint(path) for path in sources]
        request = {"job": "compare", "inputs": inputs, "distance": distance, **frame}
        with StagedOutput(target, request_key(request), overwrite=overwrite) as staged:
            _write(staged.folder, found, compared, request)
            staged.commit()
    return compared


def _read(sources: Sequence[Path], frame: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """Return the lists by their names."""
    if len(sources) < 2:
        raise ConfigError(f"compare: expected at least two particle lists, found {len(sources)}")
    tables = [read_picks(path, **frame) for path in sources]
    return dict(zip(names_of(sources), tables, strict=True))


def _pair_by_pair(
    tables: Mapping[str, pd.DataFrame], distance: float
) -> dict[tuple[str, str], Comparison]:
    return {
        (one, other): compare_picks(tables[one], tables[other], distance)
        for one, other in itertools.combinations(tables, 2)
    }


def _warn_of_classes(tables: Mapping[str, pd.DataFrame]) -> None:
    """Say where classes are not told apart, or have no name in common."""
    known = {
        name: set(table["class_name"].dropna()) if "class_name" in table.columns else set()
        for name, table in tables.items()
        if len(table)
    }
    nameless = [name for name, classes in known.items() if not classes]
    n_classes = max((max(len(known[one]), _n_numbers(tables[one])) for one in known), default=0)
    if nameless and n_classes > 1:
        log.warning(
            "compare: classes are not told apart: %s does not name them, and there are %d; "
            "give lists with names (a column class_name), or of one class",
            " and ".join(nameless), n_classes,
        )  # fmt: skip
    for one, other in itertools.combinations(known, 2):
        if known[one] and known[other] and not known[one] & known[other]:
            log.warning(
                "compare: %s and %s have no class in common (%s and %s), so no pick of both",
                one, other, *(", ".join(sorted(known[name], key=str)) for name in (one, other)),
            )  # fmt: skip


def _n_numbers(table: pd.DataFrame) -> int:
    return int(table["class_number"].nunique()) if "class_number" in table.columns else 0


def _joined(found: Mapping[tuple[str, str], Comparison]) -> pd.DataFrame:
    """Return the tables of all pairs in one, with the lists' names."""
    import pandas as pd

    tables = []
    for (one, other), comparison in found.items():
        table = comparison.table.copy()
        table.insert(0, "second", other)
        table.insert(0, "first", one)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _consensus(tables: Sequence[pd.DataFrame], distance: float) -> pd.DataFrame:
    """Merge all lists; classes matter where every list has them."""
    classless = any(len(table) and "class_name" not in table.columns for table in tables)
    apart = distance * (1 + 1e-6) + 1e-6  # merging leaves out the distance itself, pairs do not
    return merge_picks(tables, (apart,) * 3, across_classes=classless)


def _write(
    folder: Path,
    found: Mapping[tuple[str, str], Comparison],
    compared: ComparedLists,
    request: dict[str, Any],
) -> None:
    """Write the table, the lists and the record."""
    replace_file(folder / "compare.csv", compared.table.to_csv(index=False).encode())
    write_picks(compared.consensus, folder / "consensus.csv", file_format="csv")
    for (one, other), comparison in found.items():
        write_picks(comparison.both, folder / f"{one}_and_{other}.csv", file_format="csv")
        write_picks(comparison.only_first, folder / f"{one}_not_{other}.csv", file_format="csv")
        write_picks(comparison.only_second, folder / f"{other}_not_{one}.csv", file_format="csv")
    record = {"versions": versions(), "request": request, "in_so_many_lists": compared.counts}
    (folder / "run.json").write_text(json.dumps(record, indent=2, default=str) + "\n")
