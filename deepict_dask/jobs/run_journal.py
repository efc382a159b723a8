r"""What a run means to do and what has become of it so far, on disk beside its results.

``OUTPUT/.deepict-dask/`` holds three files that only the driver writes: ``lock`` (who drives the
work), ``plan.json`` (which tomograms, which outputs of each) and ``events.jsonl``, one line for
each thing that happened. A line is appended in one write, so that who reads at the same time finds
whole lines, and perhaps a half one at the end, which is not there yet.
"""

from __future__ import annotations

import json
import os
import threading
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ..io.replace import replace_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["Journal", "TomogramState", "lock_of", "read_events", "read_plan"]

_FOLDER = ".deepict-dask"


def lock_of(output: Path) -> Path:
    """Return the file of the lock of an output folder.

    Examples
    --------
    >>> from pathlib import Path
    >>> lock_of(Path("out")).as_posix()
    'out/.deepict-dask/lock'
    """
    return output / _FOLDER / "lock"


@dataclass
class TomogramState:
    """What the journal says of a tomogram."""

    state: str = "waiting"
    """waiting, running, done, failed or unfinished."""
    outputs: set[str] = field(default_factory=set)
    """Finished outputs that answer what the run asks for."""
    picks: dict[str, int] = field(default_factory=dict)
    seconds: float | None = None
    reason: str = ""


class Journal:
    """Writes the plan and then the events of one run; used by several threads.

    Parameters
    ----------
    output
        The run's output folder, which is locked.
    tomograms
        Expected outputs by tomogram, in the order of the run.
    facts
        What else is to be known of the run, such as versions.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> output = pathlib.Path(tempfile.mkdtemp())
    >>> journal = Journal(output, {"TS_1": ["picks_a"]}, {})
    >>> journal.note("TS_1", state="running"), journal.note("TS_1", output="picks_a")
    (None, None)
    >>> journal.close()
    >>> read_events(output)["TS_1"].outputs
    {'picks_a'}
    """

    def __init__(
        self, output: Path, tomograms: Mapping[str, Sequence[str]], facts: Mapping[str, Any]
    ) -> None:
        folder = output / _FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        self._run = uuid.uuid4().hex[:12]
        self._lock = threading.Lock()
        started = datetime.now(UTC).isoformat(timespec="seconds")
        plan = {"run": self._run, "started": started, **facts, "tomograms": tomograms}
        replace_file(folder / "plan.json", json.dumps(plan, indent=1, default=str) + "\n")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
        self._file = os.open(folder / "events.jsonl", flags, 0o644)

    def note(self, tomogram: str, **what: Any) -> None:
        """Append what happened to a tomogram: ``output``, or ``state`` and what belongs to it."""
        line = json.dumps({"run": self._run, "tomogram": tomogram, **what}, default=str)
        with self._lock, suppress(OSError):  # a full disk stops the work, not its journal
            if self._file >= 0:
                os.write(self._file, line.encode() + b"\n")

    def close(self) -> None:
        """Write no more."""
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
            self._file = -1


def read_plan(output: Path) -> dict[str, Any] | None:
    """Return the plan of the last run in an output folder, None where there is none."""
    try:
        plan: dict[str, Any] = json.loads((output / _FOLDER / "plan.json").read_text())
    except (OSError, ValueError):
        return None
    return plan


def read_events(output: Path) -> dict[str, TomogramState]:
    """Return what has become of the tomograms of the last run, as far as it got."""
    plan = read_plan(output) or {"run": "", "tomograms": ()}
    states = {name: TomogramState() for name in plan["tomograms"]}
    try:
        lines = (output / _FOLDER / "events.jsonl").read_bytes().splitlines(keepends=True)
    except OSError:
        return states
    for line in lines:
        event = _event(line)
        if event.get("run") == plan["run"] and event.get("tomogram") in states:
            _apply(states[event["tomogram"]], event)
    return states


def _event(line: bytes) -> dict[str, Any]:
    """Return the event of a line; nothing where the line is not all there."""
    try:
        found = json.loads(line) if line.endswith(b"\n") else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _apply(state: TomogramState, event: dict[str, Any]) -> None:
    """Let a state follow one event."""
    if "output" in event:
        state.outputs.add(event["output"])
    for name in ("state", "picks", "seconds", "reason"):
        if name in event:
            setattr(state, name, event[name])
