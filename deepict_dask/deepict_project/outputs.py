"""Outputs under DeePiCt's names: made once per request, and nobody else's are lost.

Beside each output lies a hidden note (``.probability_map.mrc.json``) with the key of the request
and the fingerprints of the files that answer it. An output that fits its note and the key is not
made again. One that fits its note is ours and is replaced. Any other was made by DeePiCt or by
hand: it is set aside as ``prev_NAME``, which is what DeePiCt does with its particle lists. While an
output is made its note says what of ours was there before (``there``), and what has taken its place
since (``exported``): after a run that failed, only these are ours.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from ..engine import fingerprint
from ..io.replace import replace_file

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = [
    "begin",
    "is_made",
    "is_promised",
    "note",
    "note_export",
    "note_facts",
    "note_path",
    "promise",
    "read_note",
    "set_aside",
    "set_aside_motls",
]


def note_path(output: Path) -> Path:
    """Return the hidden file of an output's note."""
    return output.with_name(f".{output.name}.json")


def read_note(output: Path) -> dict[str, Any]:
    """Return what was noted of an output; nothing where it was not made by us."""
    try:
        found: dict[str, Any] = json.loads(note_path(output).read_text())
    except (OSError, ValueError):
        return {}
    return found


def _fits(output: Path, found: dict[str, Any]) -> bool:
    """Say whether the files of a note are there and unchanged."""
    files: dict[str, str] = found.get("files", {})
    return bool(files) and all(
        (output.parent / name).exists() and fingerprint(output.parent / name) == digest
        for name, digest in files.items()
    )


def is_made(output: Path, key: str) -> bool:
    """Say whether a finished output answers a request and was not changed since.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> output = pathlib.Path(tempfile.mkdtemp(), "map.mrc")
    >>> _ = output.write_text("scores")
    >>> note(output, "key")
    >>> is_made(output, "key"), is_made(output, "another key")
    (True, False)
    """
    found = read_note(output)
    return found.get("key") == key and _fits(output, found)


def begin(output: Path) -> None:
    """Make room for an output: set aside what is not ours, and note that work has begun."""
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.exists() and not _is_ours(output):
        set_aside(output)
    _write(output, {"begun": True, "there": fingerprint(output) if output.exists() else None})


def _is_ours(output: Path) -> bool:
    """Say whether an output that is there was made by us, and was not changed since."""
    found = read_note(output)
    if not found.get("begun"):
        return _fits(output, found)
    return found.get("exported") == _stamp(output) or found.get("there") == fingerprint(output)


def _stamp(output: Path) -> list[int]:
    """Return size, time and inode of a file."""
    found = output.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ino]


def note_export(output: Path) -> None:
    """Note that a file of ours has taken its name; what belongs to it may still be missing.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> output = pathlib.Path(tempfile.mkdtemp(), "map.mrc")
    >>> begin(output)
    >>> _ = output.write_text("scores")
    >>> note_export(output)
    >>> begin(output)
    >>> output.exists()
    True
    """
    _write(output, {**read_note(output), "exported": _stamp(output)})


def note(output: Path, key: str, *, also: Iterable[Path] = (), **facts: Any) -> None:
    """Note that an output is finished.

    Parameters
    ----------
    output
        The file or store.
    key
        Of the request that it answers.
    also
        Files of the same folder that belong to it.
    **facts
        Whatever else is worth keeping, as JSON.
    """
    files = {path.name: fingerprint(path) for path in (output, *also)}
    _write(output, {"key": key, "files": files, **facts})


def promise(output: Path, key: str) -> None:
    """Note which request a store that is not there yet will answer, once it has its name."""
    output.parent.mkdir(parents=True, exist_ok=True)
    _write(output, {"promised": key})


def is_promised(output: Path, key: str) -> bool:
    """Say whether a store has taken its name since it was promised for this request.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> output = pathlib.Path(tempfile.mkdtemp(), "scores.zarr")
    >>> promise(output, "key")
    >>> before = is_promised(output, "key")
    >>> output.mkdir()
    >>> before, is_promised(output, "key"), is_promised(output, "another key")
    (False, True, False)
    """
    return output.exists() and read_note(output).get("promised") == key


def note_facts(record: Path, key: str, **facts: Any) -> None:
    """Note what answers a request but is no file of this folder."""
    _write(record, {"key": key, **facts})


def _write(output: Path, content: dict[str, Any]) -> None:
    """Write a note in one step."""
    replace_file(note_path(output), json.dumps(content, indent=2) + "\n")


def set_aside(path: Path) -> Path:
    """Rename a file to ``prev_NAME``, and an older one of that name likewise first.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp(), "motl_8.csv")
    >>> _ = path.write_text("")
    >>> set_aside(path).name
    'prev_motl_8.csv'
    """
    aside = path.with_name(f"prev_{path.name}")
    if aside.exists():
        set_aside(aside)
    os.replace(path, aside)
    return aside


def set_aside_motls(folder: Path) -> None:
    """Rename every file with "motl" in its name to ``prev_NAME``, as DeePiCt does."""
    motls = [path for path in folder.glob("*motl*") if path.is_file()]
    for path in sorted(motls, key=lambda p: len(p.name), reverse=True):
        set_aside(path)
