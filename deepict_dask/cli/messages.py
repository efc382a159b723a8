"""Where what the program has to say goes: the screen and a log file, as text or as JSON.

Results are on standard output (`say`). All else (warnings, errors, the plan, progress, the
dashboard's address) is logged and goes to standard error, so that results can be piped on. A log
file gets everything, results and progress too, each line with its time. The same warning is said
once.
"""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, cast

import typer

from ..core.errors import ConfigError, WorkFailedError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ..core.errors import DeepictError
    from ..engine import Progress, Workers
    from ..engine.progress import Reached

__all__ = ["begin", "end", "is_quiet", "news", "plan", "progress_of", "say", "say_error"]

Format = Literal["text", "json"]

_SAID, _NEWS, _PROGRESS = (f"deepict_dask.{name}" for name in ("said", "news", "progress"))
_BARE = (_SAID, _NEWS, _PROGRESS)
"""Loggers whose lines are shown as they are, whatever the level; others begin with WARNING."""


@dataclass
class _Outlets:
    """Where messages go now."""

    quiet: bool = False
    format: Format = "text"
    handlers: list[logging.Handler] = field(default_factory=list)
    has_file: bool = False
    level_before: int = logging.WARNING


_outlets = _Outlets()


def begin(*, level: str, quiet: bool, form: str, file: Path | None) -> None:
    """Begin to say what the options before a command ask for.

    Parameters
    ----------
    level
        debug to error: what is said beside results and progress.
    quiet
        Errors only on the screen.
    form
        text or json, on standard error and in the file.
    file
        Log file, which is continued; None for none.

    Raises
    ------
    ConfigError
        A level or format that is none, or a file that cannot be written.
    """
    global _outlets
    if level.upper() not in logging.getLevelNamesMapping():
        raise ConfigError(f"--log-level: expected debug to error, found {level!r}")
    if form not in ("text", "json"):
        raise ConfigError(f"--log-format: expected text or json, found {form!r}")
    end()
    screen = _Screen(quiet=quiet)
    screen.setFormatter(_Json() if form == "json" else _Text())
    handlers: list[logging.Handler] = [screen]
    if file is not None:
        handlers.append(_file_handler(file, _Json() if form == "json" else _Text(timed=True)))
    root = logging.getLogger()
    _outlets = _Outlets(quiet, cast("Format", form), handlers, file is not None, root.level)
    for handler in handlers:
        handler.addFilter(_Once())
        root.addHandler(handler)
    root.setLevel(level.upper())
    for name in _BARE:
        logging.getLogger(name).setLevel(logging.INFO)


def end() -> None:
    """Take back what `begin` did, so that one program can run several commands."""
    global _outlets
    root = logging.getLogger()
    for handler in _outlets.handlers:
        root.removeHandler(handler)
        handler.close()
    if _outlets.handlers:
        root.setLevel(_outlets.level_before)
    _outlets = _Outlets()


def is_quiet() -> bool:
    """Say whether nothing but errors is shown."""
    return _outlets.quiet


def say(text: str) -> None:
    """Print one line of result."""
    if not _outlets.quiet:
        typer.echo(text)
    if _outlets.has_file:
        logging.getLogger(_SAID).info("%s", text)


def news(text: str) -> None:
    """Say what is no result and no warning, such as where the dashboard is."""
    if not _outlets.handlers:
        typer.echo(text, err=True)
    logging.getLogger(_NEWS).info("%s", text)


def say_error(error: DeepictError) -> None:
    """Say why a command ends."""
    if _outlets.format == "text":
        print(f"error: {error}", file=sys.stderr)
    record = logging.LogRecord("deepict_dask", logging.ERROR, "", 0, str(error), None, None)
    for handler in _outlets.handlers:
        if _outlets.format == "json" or not isinstance(handler, _Screen):
            handler.handle(record)


def progress_of(workers: Workers | None, *, shown: bool) -> Progress:
    """Return what shows how far stages are: bars, or lines where no terminal is.

    Parameters
    ----------
    workers
        Whose memory is shown with it.
    shown
        What --progress says.
    """
    from ..engine import Progress

    shown = shown and not _outlets.quiet
    bars = shown and _outlets.format == "text" and sys.stderr.isatty()
    tell: Callable[[Reached | str], None] | None = None
    if shown and (_outlets.has_file or not bars):
        tell = _log_progress
    elif _outlets.has_file:
        tell = _log_plan
    return Progress(shown=bars, tell=tell, memory=None if workers is None else workers.memory_used)


def plan(text: str, *, shown: bool) -> None:
    """Say what a command is about to do; ``shown`` is what --progress says."""
    progress_of(None, shown=shown).line(f"plan: {text}")


def _log_progress(line: Reached | str) -> None:
    """Log how far a stage is, or a line about all of them."""
    if isinstance(line, str):
        news(line)
    else:
        logging.getLogger(_PROGRESS).info("%s", line, extra={"facts": line.facts})


def _log_plan(line: Reached | str) -> None:
    """Log a line about all stages, for the file only."""
    if isinstance(line, str):
        logging.getLogger(_SAID).info("%s", line)


def _file_handler(file: Path, formatter: logging.Formatter) -> logging.Handler:
    """Open a log file to be continued."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(file, encoding="utf-8")
    except OSError as error:
        raise WorkFailedError(
            f"--log-file {file}: cannot be written ({error.strerror}); give another place"
        ) from error
    handler.setFormatter(formatter)
    return handler


class _Screen(logging.Handler):
    """Writes to standard error as it is at that time, which tests and bars exchange."""

    def __init__(self, *, quiet: bool) -> None:
        super().__init__(logging.ERROR if quiet else logging.NOTSET)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, unless it is on standard output or in the bars already."""
        if record.name == _SAID:
            return
        if record.name == _PROGRESS and _outlets.format == "text" and sys.stderr.isatty():
            return
        try:
            sys.stderr.write(self.format(record) + "\n")  # in one write: threads share it
            sys.stderr.flush()
        except (OSError, ValueError):
            self.handleError(record)


class _Once(logging.Filter):
    """Lets the same warning pass once."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether a line is new; only warnings are counted."""
        if record.levelno != logging.WARNING:
            return True
        text = record.getMessage()
        is_new = text not in self._seen
        self._seen.add(text)
        return is_new


class _Text(logging.Formatter):
    """One line for people; in a file with time and level."""

    def __init__(self, *, timed: bool = False) -> None:
        super().__init__("%(asctime)s %(levelname)s: %(message)s" if timed else None)
        self._timed = timed

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        if self._timed:
            return super().format(record)
        text = super().format(record)
        return text if record.name in _BARE else f"{record.levelname}: {text}"


class _Json(logging.Formatter):
    """One JSON object a line, for programs.

    Examples
    --------
    >>> record = logging.LogRecord("a", logging.WARNING, "", 0, "%s voxels", (3,), None)
    >>> json.loads(_Json().format(record))["message"]
    '3 voxels'
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        from ..jobs.runs.in_turn import tomogram_in_turn

        said: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if tomogram := tomogram_in_turn():
            said["tomogram"] = tomogram
        said |= {k: v for k, v in getattr(record, "facts", {}).items() if v is not None}
        if record.exc_info:
            said["traceback"] = self.formatException(record.exc_info)
        return json.dumps(said, ensure_ascii=False, default=str)
