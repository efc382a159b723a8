"""How far a run is, from what it leaves on disk; the run may be alive, over or killed.

What is the state of one output of one tomogram?

1. *done*: the journal says that it answers what the run asks for.
2. *running* or *stopped*: its partial folder is there; with a ledger, so many of so many windows.
   Running while a driver is alive and at this tomogram.
3. *failed*: the first output that a failed tomogram lacks.
4. *earlier*: a finished output of an earlier run, which the run has not looked at yet.
   (What a run of DeePiCt's config finds under an output's name counts as that.)
5. *not made*: what else a failed tomogram lacks.
6. *waiting*: nothing is there.

Nothing is written and no lock is taken, so that looking never disturbs a run.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import ConfigError
from ...engine.ledger import count_finished
from ...engine.output_lock import Holder, living_holder
from .journal import TomogramState, lock_of, read_end, read_events, read_plan
from .stage_record import StageRecord

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["OutputStatus", "RunStatus", "TomogramStatus", "read_status", "status_lines"]


@dataclass(frozen=True)
class OutputStatus:
    """How far one output of a tomogram is."""

    output: str
    state: str
    """done, running, stopped, failed, earlier, not made or waiting."""
    n_done: int | None = None
    """Windows that are finished, where they are counted."""
    n_windows: int | None = None

    def __str__(self) -> str:
        counted = "" if self.n_windows is None else f" {self.n_done} of {self.n_windows} windows"
        return f"{self.output} {self.state}{counted}"


@dataclass(frozen=True)
class TomogramStatus:
    """How far one tomogram is."""

    tomogram: str
    state: str
    """waiting, running, stopped, done, failed or unfinished."""
    outputs: tuple[OutputStatus, ...]
    picks: dict[str, int]
    seconds: float | None
    reason: str
    warnings: tuple[str, ...] = ()
    """What was odd about it before any network ran."""


@dataclass(frozen=True)
class RunStatus:
    """How far a run is."""

    plan: dict[str, Any]
    """When it began, by whom, with which versions."""
    driver: Holder | None
    """Who drives the run now, None where nobody does."""
    tomograms: tuple[TomogramStatus, ...]
    ended: str = ""
    """When it ended, and by what it was stopped; nothing where it is at work or was killed."""

    @property
    def counts(self) -> dict[str, int]:
        """Number of tomograms in each state."""
        states = [one.state for one in self.tomograms]
        return {state: states.count(state) for state in dict.fromkeys(states)}

    def as_json(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        hidden = {"tomograms", "places"}
        facts = {name: value for name, value in self.plan.items() if name not in hidden}
        return {
            "plan": facts,
            "driver": None if self.driver is None else asdict(self.driver),
            "ended": self.ended,
            "counts": self.counts,
            "tomograms": [asdict(one) for one in self.tomograms],
        }


def read_status(output: Path) -> RunStatus:
    """Return how far the last run in an output folder is.

    Raises
    ------
    ConfigError
        There was no run.
    """
    driver = living_holder(lock_of(output))  # first: a driver that ends now has written its events
    plan = read_plan(output)
    if plan is None:
        raise ConfigError(
            f"{output}: expected the output folder of `deepict-dask run`, found no plan of a run; "
            "give the folder that its config names as output"
        )
    states, places = read_events(output), plan.get("places", {})
    tomograms = [
        _tomogram(
            name,
            output / name,
            states[name],
            outputs,
            places.get(name, {}),
            is_alive=driver is not None,
        )
        for name, outputs in plan["tomograms"].items()
    ]
    return RunStatus(plan, driver, tuple(tomograms), read_end(output))


def _tomogram(
    name: str,
    folder: Path,
    state: TomogramState,
    outputs: list[str],
    places: dict[str, dict[str, str]],
    *,
    is_alive: bool,
) -> TomogramStatus:
    """Bring together what the journal says and what is on disk."""
    now = "stopped" if state.state == "running" and not is_alive else state.state
    earlier = StageRecord(folder).outputs()
    earlier += [one for one, place in places.items() if Path(place["path"]).exists()]
    found = []
    missing = [one for one in outputs if one not in state.outputs]
    for one in outputs:
        partial = Path(places[one]["partial"]) if one in places else folder / f"{one}.partial"
        if one in state.outputs:
            found.append(OutputStatus(one, "done"))
        elif now == "failed" and one == missing[0]:
            found.append(OutputStatus(one, "failed", *_windows(partial)))
        elif partial.is_dir():
            found.append(
                OutputStatus(one, "running" if now == "running" else "stopped", *_windows(partial))
            )
        else:
            nothing = "not made" if now == "failed" else "waiting"
            found.append(OutputStatus(one, "earlier" if one in earlier else nothing))
    return TomogramStatus(
        name, now, tuple(found), state.picks, state.seconds, state.reason,
        tuple(state.warnings),
    )  # fmt: skip


def _windows(partial: Path) -> tuple[int | None, int | None]:
    """Return how many windows of how many are finished, where they are counted."""
    return count_finished(partial / ".ledger") or (None, None)


def status_lines(status: RunStatus) -> Iterator[str]:
    """Yield the status for people: the driver, the counts, each tomogram with its warnings.

    Examples
    --------
    >>> one = OutputStatus("scores_a.zarr", "running", 3, 8)
    >>> tomogram = TomogramStatus("TS_1", "running", (one,), {}, None, "", ("its spacing is odd",))
    >>> for line in status_lines(RunStatus({"started": "2026-01-01"}, None, (tomogram,))):
    ...     print(line)
    nobody works here now; the last run began 2026-01-01
    1 tomogram: 1 running
    TS_1  running  scores_a.zarr running 3 of 8 windows
      warning: its spacing is odd
    """
    began = status.plan.get("started", "at an unknown time")
    if status.driver is None:
        stopped = status.ended.startswith("stopped")
        how = f" and was {status.ended}" if stopped else ""
        yield f"nobody works here now; the last run began {began}{how}"
    else:
        yield f"at work: {status.driver}"
    n = len(status.tomograms)
    counts = ", ".join(f"{count} {state}" for state, count in status.counts.items())
    yield f"{n} tomogram{'s' * (n != 1)}: {counts}"
    width = max((len(one.tomogram) for one in status.tomograms), default=0)
    for one in status.tomograms:
        yield f"{one.tomogram:<{width}}  {one.state}  {_details(one)}".rstrip()
        for text in one.warnings:
            yield f"  warning: {text}"


def _details(one: TomogramStatus) -> str:
    """Return what there is to say of a tomogram: its picks, or its outputs, and the reason."""
    if one.state == "done":
        picks = ", ".join(f"{n} in {name}" for name, n in one.picks.items())
        return f"{picks or 'all outputs'}, {one.seconds:.0f} s"
    outputs = ", ".join(map(str, one.outputs))
    return f"{outputs}; {one.reason}" if one.reason else outputs
