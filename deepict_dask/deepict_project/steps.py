"""What the 2D and the 3D run share: make an output once, export a store, leave nothing behind."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..engine import fingerprint, request_key
from ..io.export import export_volume
from ..io.volumes import open_volume
from .outputs import (
    begin,
    is_made,
    is_promised,
    note,
    note_export,
    promise,
    read_note,
    set_aside,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..jobs.session import Session

__all__ = [
    "Made",
    "Maker",
    "clear_work",
    "export_float32",
    "key_of",
    "remove_empty",
    "set_summary_aside",
    "through_store",
]


@dataclass(frozen=True)
class Made:
    """What came with an output."""

    also: tuple[Path, ...] = ()
    """Files of its folder that belong to it."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What is worth noting."""
    spent: tuple[Path, ...] = ()
    """Stores that are not needed any more once it is noted."""


@dataclass(frozen=True)
class Maker:
    """Makes each output once."""

    session: Session
    say: Callable[[str], None]
    resume: bool = True
    """Whether finished outputs are kept."""
    made: Callable[[str], None] = lambda _output: None
    """Told the name of each output that is made, or found to answer the request."""

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
            for store in made.spent:
                shutil.rmtree(store, ignore_errors=True)
            self.say(f"{tomogram}: wrote {output}")
        self.made(output.name)
        return read_note(output)


def key_of(request: dict[str, Any]) -> str:
    """Return the key of a request; files in it count by their content."""
    return request_key(
        {name: fingerprint(v) if isinstance(v, Path) else v for name, v in request.items()}
    )


def through_store(store: Path, key: str, job: Callable[[Path], Any], target: Path) -> Made:
    """Let a job make a store, which outlives a kill, and write it as a file.

    The store is kept until the file is noted, and answers its request from when it has its name.

    Parameters
    ----------
    store
        Zarr store to make.
    key
        Of the request.
    job
        Makes a store at the path it is given.
    target
        The MRC file.
    """
    if not (is_made(store, key) or is_promised(store, key)):
        shutil.rmtree(store, ignore_errors=True)  # of another request
        promise(store, key)
        job(store)
        note(store, key)
    export_float32(store, target)
    return Made(spent=(store,))


def export_float32(store: Path, target: Path) -> None:
    """Stream a store into a float32 MRC file; the spacing is what the store says, even none."""
    export_volume(
        open_volume(store, spacing_required=False), target, dtype="float32", overwrite=True
    )
    note_export(target)


def clear_work(folder: Path) -> None:
    """Remove a tomogram's intermediate stores."""
    shutil.rmtree(folder, ignore_errors=True)


def remove_empty(folder: Path, root: Path) -> None:
    """Remove a folder and those above it, up to the root, as far as nothing is in them."""
    with suppress(OSError):  # not empty, or not there
        for parent in (folder, *folder.parents):
            with suppress(FileNotFoundError):
                parent.rmdir()
            if parent == root:
                break


def set_summary_aside(output: Path) -> None:
    """Make room for the summary, where a file of that name is nobody's summary."""
    path = output / "summary.csv"
    with suppress(FileNotFoundError), path.open("rb") as file:
        if not file.readline().startswith(b"tomogram,state,"):
            set_aside(path)
