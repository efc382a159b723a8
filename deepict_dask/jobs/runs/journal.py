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
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ...io.replace import replace_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

__all__ = [
    "Journal",
    "OutputPlace",
    "TomogramState",
    "lock_of",
    "read_end",
    "read_events",
    "read_plan",
]

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


@dataclass(frozen=True)
class OutputPlace:
    """Where an output is that is not at OUTPUT/TOMOGRAM/NAME."""

    path: Path
    """The finished output."""
    partial: Path
    """The folder where it is in work, with a ledger or without."""


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
    warnings: list[str] = field(default_factory=list)
    """What was odd about the tomogram before any network ran."""


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
    places
        Where outputs are and are made, by tomogram and name, if not where ours are.

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
        self,
        output: Path,
        tomograms: Mapping[str, Sequence[str]],
        facts: Mapping[str, Any],
        *,
        places: Mapping[str, Mapping[str, OutputPlace]] | None = None,
    ) -> None:
        folder = output / _FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        self._run = uuid.uuid4().hex[:12]
        self._lock = threading.Lock()
        started = datetime.now(UTC).isoformat(timespec="seconds")
        plan = {"run": self._run, "started": started, **facts, "tomograms": tomograms}
        if places:
            plan["places"] = {
                name: {output: asdict(place) for output, place in of_one.items()}
                for name, of_one in places.items()
            }
        replace_file(folder / "plan.json", json.dumps(plan, indent=1, default=str) + "\n")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
        self._file = os.open(folder / "events.jsonl", flags, 0o644)

    def note(self, tomogram: str, **what: Any) -> None:
        """Append what happened to a tomogram: ``output``, ``warning``, or ``state`` and more.

        A warning is what people should know of the tomogram.
        """
        self._append({"tomogram": tomogram, **what})

    def _append(self, what: dict[str, Any]) -> None:
        line = json.dumps({"run": self._run, **what}, default=str)
        with self._lock, suppress(OSError):  # a full disk stops the work, not its journal
            if self._file >= 0:
                os.write(self._file, line.encode() + b"\n")

    def close(self, stopped: str = "") -> None:
        """Note that the run has ended, or by what it was stopped, and write no more."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self._append({"ended": now, "stopped": stopped})
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
    for event in _events(output, plan["run"]):
        if event.get("tomogram") in states:
            _apply(states[event["tomogram"]], event)
    return states


def read_end(output: Path) -> str:
    """Return when the last run ended, and by what if it was stopped; nothing if it was killed.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> output = pathlib.Path(tempfile.mkdtemp())
    >>> journal = Journal(output, {"TS_1": ["picks_a"]}, {})
    >>> read_end(output), journal.close("by SIGTERM"), read_end(output).partition(" at ")[0]
    ('', None, 'stopped by SIGTERM')
    """
    plan = read_plan(output) or {"run": ""}
    for event in _events(output, plan["run"]):
        if "ended" in event:
            stopped = event.get("stopped", "")
            return f"stopped {stopped} at {event['ended']}" if stopped else str(event["ended"])
    return ""


def _events(output: Path, run: str) -> Iterator[dict[str, Any]]:
    """Yield what happened in a run, in order."""
    try:
        lines = (output / _FOLDER / "events.jsonl").read_bytes().splitlines(keepends=True)
    except OSError:
        return
    yield from (event for event in map(_event, lines) if event.get("run") == run)


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
    if "warning" in event:
        state.warnings.append(event["warning"])
    for name in ("state", "picks", "seconds", "reason"):
        if name in event:
            setattr(state, name, event[name])
