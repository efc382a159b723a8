"""What became of each tomogram of a run, as a table for people and as summary.csv."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...io.csv_text import csv_of_rows
from ...io.replace import replace_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from ...core.errors import DeepictError

__all__ = ["RunReport", "TomogramReport", "summary_lines", "write_summary"]

_SHOWN = 40
"""Tomograms that are done are shown one by one up to so many; others always are."""


@dataclass(frozen=True)
class TomogramReport:
    """What became of one tomogram.

    Examples
    --------
    >>> TomogramReport("TS_1", {"picks_a": 3}).state, TomogramReport("TS_2", is_done=False).state
    ('done', 'unfinished')
    """

    name: str
    n_picks: dict[str, int] = field(default_factory=dict)
    """Picks of each pick section, by the name of its folder."""
    error: DeepictError | None = None
    seconds: float = 0.0
    """From its start to its end; tomograms that run at the same time share the workers."""
    is_done: bool = True
    """False where it failed, or where the run ended before it did."""
    reason: str = ""
    """Why it was not finished, where nothing of its own failed."""

    @property
    def state(self) -> str:
        """done, failed or unfinished."""
        if self.error is not None:
            return "failed"
        return "done" if self.is_done else "unfinished"

    @property
    def why(self) -> str:
        """Why it is not done, on one line."""
        return " ".join(str(self.error or self.reason).split())


@dataclass(frozen=True)
class RunReport:
    """What became of a run."""

    tomograms: tuple[TomogramReport, ...]

    @property
    def failed(self) -> list[TomogramReport]:
        """The tomograms that failed, or were not reached because the workers were lost."""
        return [report for report in self.tomograms if report.state != "done"]


def write_summary(reports: Sequence[TomogramReport], picks: Sequence[str], path: Path) -> None:
    """Write summary.csv: a row for each tomogram, in the order of the run.

    Parameters
    ----------
    reports
        What became of the tomograms.
    picks
        Names of the folders of picks: a column each, empty where it was not made.
    path
        The file.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "summary.csv")
    >>> write_summary([TomogramReport("TS_1", {"picks_a": 3}, seconds=1.25)], ["picks_a"], path)
    >>> print(path.read_text())
    tomogram,state,picks_a,seconds,reason
    TS_1,done,3,1.2,
    <BLANKLINE>
    """
    rows: list[list[Any]] = [["tomogram", "state", *picks, "seconds", "reason"]]
    for one in reports:
        counts = [one.n_picks.get(name, "") for name in picks]
        rows.append([one.name, one.state, *counts, f"{one.seconds:.1f}", one.why])
    replace_file(path, csv_of_rows(rows))


def summary_lines(reports: Sequence[TomogramReport], picks: Sequence[str]) -> Iterator[str]:
    r"""Yield the summary as lines of a table; a long list shows what was not done.

    Examples
    --------
    >>> reports = [TomogramReport("TS_1", {"picks_a": 3}), TomogramReport("TS_2", is_done=False)]
    >>> print("\n".join(line.rstrip() for line in summary_lines(reports, ["picks_a"])))
    tomogram  state       picks_a  seconds  reason
    TS_1      done              3      0.0
    TS_2      unfinished               0.0
    1 of 2 tomograms done, 0 failed, 1 unfinished
    """
    shown = [one for one in reports if one.state != "done" or len(reports) <= _SHOWN]
    rows = [["tomogram", "state", *picks, "seconds", "reason"]]
    for one in shown:
        counts = [str(one.n_picks.get(name, "")) for name in picks]
        rows.append([one.name, one.state, *counts, f"{one.seconds:.1f}", one.why])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    for row in rows if shown else ():
        cells = [
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=False))
        ]
        yield "  ".join([*cells, row[-1]])
    states = [one.state for one in reports]
    yield (
        f"{states.count('done')} of {len(reports)} tomograms done, "
        f"{states.count('failed')} failed, {states.count('unfinished')} unfinished"
    )
