"""The files of a pick folder that are not volumes."""

from __future__ import annotations

import json
import logging
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from ...io.parquet import write_parquet
from ...io.picks import write_pick_batches
from ...io.picks_table import TomogramFrame

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ...config import PickSettings
    from ...core.volume import VolumeHeader
    from .clusters import ClusterTables

__all__ = ["PICK_FILES", "PickReport", "spacing_of_picks", "write_record", "write_tables"]

log = logging.getLogger("deepict_dask")

_RECORD, _SPACING = "run.json", "voxel_spacing_angstrom"
PICK_FILES = frozenset({
    _RECORD, "picks.csv", "motl.csv", "picks.star", "raw_picks.csv", "clusters.parquet",
    *(f"{name}.{ending}" for name in ("segmentation", "label_map") for ending in ("zarr", "mrc")),
})  # fmt: skip
"""Every name that a job gives in a folder of picks; what else is there is the user's."""


@dataclass(frozen=True)
class PickReport:
    """What a pick job made."""

    folder: Path
    n_picks: int


def write_tables(
    folder: Path,
    tables: ClusterTables,
    header: VolumeHeader,
    settings: PickSettings,
    *,
    request: dict[str, Any],
    tomogram_name: str,
    inputs: dict[str, Any],
    started: datetime,
) -> PickReport:
    """Write the cluster table, the particle lists and the record of the run.

    Parameters
    ----------
    folder
        Where to; files of the same names are replaced.
    tables
        Clusters and picks.
    header
        Of the score map: shape and spacing turn voxels into Å in the STAR file.
    settings
        How the picks were made.
    request
        What was asked for, with its key.
    tomogram_name
        Name in the STAR file.
    inputs
        Paths of the inputs, for the record.
    started
        When the job began, for the record.
    """
    n_picks = write_parquet(tables.cluster_tables(), folder / "clusters.parquet")
    frame = TomogramFrame(
        voxel_spacing_angstrom=header.voxel_spacing_angstrom,
        shape=header.shape,
        name=tomogram_name,
    )
    write_pick_batches(tables.picks_by_falling_score(), folder / "picks.csv", frame)
    motl = "motl-deepict" if settings.compat else None
    write_pick_batches(tables.picks(), folder / "motl.csv", frame, file_format=motl)
    if header.voxel_spacing_angstrom is None:
        log.warning(
            "%s: no voxel spacing is known, so picks.star (in Å) is not written; "
            "give --voxel-spacing-angstrom (in a config: voxel_spacing_angstrom)", tomogram_name,
        )  # fmt: skip
    else:
        write_pick_batches(tables.picks(), folder / "picks.star", frame)
    write_record(folder, header, inputs=inputs, request=request, started=started, n_picks=n_picks)
    return PickReport(folder, n_picks)


def write_record(
    folder: Path,
    header: VolumeHeader,
    *,
    inputs: dict[str, Any],
    request: dict[str, Any],
    started: datetime,
    **counts: int,
) -> None:
    """Write the record of a folder of picks, ``run.json``.

    Parameters
    ----------
    folder
        Where to; a record that is there is replaced.
    header
        Of the volume whose voxels the picks are counted in.
    inputs, request, started
        As of `write_tables`.
    **counts
        How many picks there are (``n_picks``), and what else was counted.
    """
    record = {
        "versions": versions(), "inputs": inputs, "request": request, **counts,
        _SPACING: header.voxel_spacing_angstrom,
        "started": started.isoformat(timespec="seconds"),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
    (folder / _RECORD).write_text(json.dumps(record, indent=2, default=str) + "\n")


def spacing_of_picks(folder: Path, otherwise: Callable[[Path], float | None]) -> float | None:
    """Return the voxel spacing (Å) of a folder of picks; None where it is not known.

    Parameters
    ----------
    folder
        Of picks, with its record.
    otherwise
        Returns the spacing where the record does not name it, as those of older versions.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> _ = (folder / "run.json").write_text('{"voxel_spacing_angstrom": 13.48}')
    >>> spacing_of_picks(folder, lambda _folder: None)
    13.48
    """
    try:
        found: float | None = json.loads((folder / _RECORD).read_text())[_SPACING]
    except (OSError, ValueError, KeyError, TypeError):
        return otherwise(folder)
    return found


def versions() -> dict[str, str]:
    """Return the versions that shape a result.

    Examples
    --------
    >>> "numpy" in versions()
    True
    """
    return {"python": platform.python_version(), **_installed()}


@cache
def _installed() -> dict[str, str]:
    """Return the versions of libraries: they are read from disk, 3 ms for each folder of picks."""
    names = ("deepict-dask", "numpy", "scipy", "zarr", "dask", "connected-components-3d", "torch")
    return {name: version(name) for name in names}
