"""What the 2D and the 3D run share: make an output once, export a store, go on after a failure."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import DeepictError
from ..engine import fingerprint, request_key
from ..io.export import export_volume
from ..io.volumes import open_volume
from ..pipeline import RunReport, TomogramReport
from .outputs import begin, is_made, note, read_note

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ..jobs.session import Session

__all__ = [
    "Made",
    "Maker",
    "clear_work",
    "export_float32",
    "key_of",
    "run_each_tomogram",
    "through_store",
]


@dataclass(frozen=True)
class Made:
    """What came with an output."""

    also: tuple[Path, ...] = ()
    """Files of its folder that belong to it."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What is worth noting."""


@dataclass(frozen=True)
class Maker:
    """Makes each output once."""

    session: Session
    say: Callable[[str], None]
    resume: bool = True
    """Whether finished outputs are kept."""

    def make(
        self,
        tomogram: str,
        output: Path,
        request: dict[str, Any],
        make: Callable[[Path], Made | None],
    ) -> dict[str, Any]:
        """Make an output unless a finished one answers the request; return what was noted."""
        key = key_of(request)
        if self.resume and is_made(output, key):
            self.say(f"{tomogram}: {output.name} is up to date")
        else:
            begin(output)
            made = make(output) or Made()
            note(output, key, also=made.also, **made.facts)
            self.say(f"{tomogram}: wrote {output}")
        return read_note(output)


def key_of(request: dict[str, Any]) -> str:
    """Return the key of a request; files in it count by their content."""
    return request_key(
        {name: fingerprint(v) if isinstance(v, Path) else v for name, v in request.items()}
    )


def through_store(store: Path, key: str, job: Callable[[Path], Any], target: Path) -> None:
    """Let a job make a store, which outlives a kill, and write it as a file.

    Parameters
    ----------
    store
        Zarr store to make, removed at the end.
    key
        Of the request.
    job
        Makes a store at the path it is given.
    target
        The MRC file.
    """
    if not is_made(store, key):
        begin(store)
        job(store)
        note(store, key)
    export_float32(store, target)
    shutil.rmtree(store)


def export_float32(store: Path, target: Path) -> None:
    """Stream a store into a float32 MRC file; the spacing is what the store says, even none."""
    export_volume(
        open_volume(store, spacing_required=False), target, dtype="float32", overwrite=True
    )


def clear_work(folder: Path, root: Path) -> None:
    """Remove a tomogram's intermediate stores, and folders above them that are empty then."""
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # not empty, or not there
        for parent in folder.parents:
            parent.rmdir()
            if parent == root:
                break


def run_each_tomogram(
    names: Iterable[str], run_one: Callable[[str], dict[str, int]], say: Callable[[str], None]
) -> RunReport:
    """Run all tomograms; one that fails does not stop the others.

    Raises
    ------
    DeepictError
        The only tomogram failed.
    """
    names, reports = list(names), []
    for name in names:
        try:
            reports.append(TomogramReport(name, run_one(name)))
        except DeepictError as error:
            if len(names) == 1:
                raise
            say(f"{name}: failed: {error}")
            reports.append(TomogramReport(name, error=error))
    return RunReport(tuple(reports))
