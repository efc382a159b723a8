"""Write the report of a run or of a folder of picks.

1. One tomogram: ``report.html`` holds everything. Several: each has a page ``report/<name>.html``,
   and ``report.html`` the table that leads to them.
2. Pages are made by the workers: a task reads what a page shows and writes its file. Without
   workers, or once they are lost, this process makes them in turn. A page whose tomogram has not
   changed is kept.
3. A page that cannot be made is named in the table; the report is still written.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..core.errors import DeepictError
from ..io.datasets.names import as_file_name
from ..io.replace import replace_file
from ..io.unpack import unpacked_for_now
from .elements import element, join
from .page import read_head, render
from .run_page import run_part, settings_part
from .sources import RunSource, TomogramSource, read_source
from .tomogram_page import make_part

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from ..engine import Workers

__all__ = ["report_of_run", "write_report"]

log = logging.getLogger("deepict_dask")

REPORT = "report.html"
_PAGES = "report"
_PATIENCE_S = 900
"""For one page; it is made in seconds."""


@dataclass(frozen=True)
class _PageTask:
    """One page to be made; picklable."""

    run: RunSource
    """Without its tomograms."""
    tomogram: TomogramSource
    path: Path
    key: str

    def make(self) -> str | None:
        """Write the page; return the thumbnail."""
        with unpacked_for_now(self.path.parent):
            part = make_part(self.run, self.tomogram)
        back = element("a", f"← {self.run.folder.name}", href=f"../{REPORT}")
        body = join(element("nav", back), part.body, settings_part(self.run))
        page = render(
            title=f"{self.tomogram.name} · {self.run.folder.name}", body=body, key=self.key,
            thumbnail=part.thumbnail,
        )  # fmt: skip
        replace_file(self.path, page)
        return part.thumbnail


def report_of_run(
    folder: Path, *, workers: Workers | None = None, say: Callable[[str], None]
) -> Path | None:
    """Write the report of a run that has ended; what goes wrong is a warning, never an error.

    Parameters
    ----------
    folder
        The run's output folder.
    workers
        Make the pages of several tomograms.
    say
        Told where the report is.

    Returns
    -------
    Path
        The report, None where it could not be written.
    """
    try:
        path = write_report(folder, workers=workers)
    except Exception as error:  # the results are there; a picture of them must not spoil the run
        log.warning("%s: no report was written: %s: %s", folder, type(error).__name__, error)
        log.debug("the report failed", exc_info=True)
        return None
    say(f"report in {path}")
    return path


def write_report(
    folder: Path, *, tomogram: Path | None = None, workers: Workers | None = None
) -> Path:
    """Write ``report.html`` into the output folder of a run or a folder of picks.

    Parameters
    ----------
    folder
        What `deepict-dask run` or `deepict-dask pick` has made, finished or not.
    tomogram
        The tomogram behind a folder of picks, where it is not known.
    workers
        Make the pages of several tomograms.

    Returns
    -------
    Path
        The report.

    Raises
    ------
    ConfigError
        The folder is neither.
    OSError
        The report cannot be written.
    """
    run = read_source(folder, tomogram=tomogram)
    report = run.folder / REPORT
    if len(run.tomograms) == 1:
        replace_file(report, _one_page(run))
        return report
    tasks = _page_tasks(run)
    thumbnails, problems = _make_pages(tasks, workers)
    pages = {
        task.tomogram.name: f"{_PAGES}/{task.path.name}"
        for task in tasks
        if task.tomogram.name not in problems
    }
    shown = replace(run, tomograms=tuple(_with_problem(t, problems) for t in run.tomograms))
    body = join(run_part(shown, thumbnails, pages), settings_part(run))
    replace_file(report, render(title=f"Report: {run.folder.name}", body=body))
    return report


def _one_page(run: RunSource) -> str:
    """Return the report of a single tomogram."""
    with unpacked_for_now(run.folder):
        part = make_part(run, run.tomograms[0])
    name = run.tomograms[0].name
    body = join(run_part(run, {name: part.thumbnail}, {}), part.body, settings_part(run))
    return render(title=f"Report: {run.folder.name}", body=body, thumbnail=part.thumbnail)


def _page_tasks(run: RunSource) -> list[_PageTask]:
    """Return the pages of tomograms of which there is something to show."""
    folder = run.folder / _PAGES
    folder.mkdir(exist_ok=True)
    alone = replace(run, tomograms=())
    return [
        _PageTask(alone, one, folder / f"{as_file_name(one.name)}.html", _key_of(alone, one))
        for one in run.tomograms
        if one.state != "waiting"
    ]


def _key_of(run: RunSource, one: TomogramSource) -> str:
    """Return a key that changes with all that a page shows, but for how long a run took."""
    run, one = replace(run, started="", by={}), replace(one, seconds=None)
    made = (*one.score_maps, *one.regions.values(), *one.volumes.values())
    files = [one.tomogram, one.equalized, *made]
    facts = [__version__, asdict(run), asdict(one), [_stamp(path) for path in files if path]]
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _stamp(path: Path) -> tuple[str, int, int]:
    """Return what changes with a file or the folder of a store."""
    try:
        stat = path.stat()
    except OSError:
        return str(path), 0, 0
    return str(path), stat.st_size, stat.st_mtime_ns


def _make_pages(
    tasks: Sequence[_PageTask], workers: Workers | None
) -> tuple[dict[str, str | None], dict[str, str]]:
    """Make the pages that are not up to date; return thumbnails and problems by tomogram."""
    thumbnails: dict[str, str | None] = {}
    problems: dict[str, str] = {}
    stale = []
    for task in tasks:
        key, thumbnails[task.tomogram.name] = read_head(task.path)
        if key != task.key:
            stale.append(task)
    for task, found in _results(stale, workers):
        name = task.tomogram.name
        if isinstance(found, BaseException):
            problems[name] = f"no page: {type(found).__name__}: {found}"
            log.warning("%s: %s", name, problems[name])
        else:
            thumbnails[name] = found
    return thumbnails, problems


def _results(
    tasks: Sequence[_PageTask], workers: Workers | None
) -> Iterator[tuple[_PageTask, Any]]:
    """Yield each task with the thumbnail of its page, or with the error."""
    if workers is None or not workers.is_connected or len(tasks) < 2:
        for task in tasks:
            yield task, _outcome(task)
        return
    step = workers.in_flight()
    for first in range(0, len(tasks), step):
        batch = tasks[first : first + step]
        futures = workers.client.map(_outcome, batch, pure=False, **workers.placed())
        try:
            for task, future in zip(batch, futures, strict=True):
                yield task, _answer(future)
        finally:
            workers.client.cancel(futures)


def _answer(future: Any) -> Any:
    """Return what a worker made, or the error: the worker died, or no worker is left."""
    try:
        return future.result(timeout=_PATIENCE_S)
    except Exception as error:  # of any kind: Dask hands on what it met
        return error


def _outcome(task: _PageTask) -> str | BaseException | None:
    """Make a page; return the error instead of raising it."""
    try:
        return task.make()
    except Exception as error:  # whatever it is, it concerns this page only
        return DeepictError(f"{type(error).__name__}: {error}")


def _with_problem(one: TomogramSource, problems: dict[str, str]) -> TomogramSource:
    """Say of a tomogram why it has no page."""
    if one.name not in problems:
        return one
    return replace(one, reason="; ".join(filter(None, [one.reason, problems[one.name]])))
