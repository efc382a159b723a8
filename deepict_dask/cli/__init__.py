"""The command line: translates options into settings, nothing else.

Exit codes: 0 done; 1 some work failed (named); 2 the request is wrong. One message, no traceback
(``--debug`` shows it). Heavy libraries are imported by the command that needs them.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from .. import __version__
from ..core.errors import ConfigError, DeepictError, WorkFailedError
from . import (
    comparing,
    datasets,
    evaluating,
    fetching,
    filaments,
    messages,
    particles,
    picking,
    project,
    reporting,
    running,
    segmenting,
    slices,
    status,
    training,
    viewing,
    volumes,
)

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["app", "main"]

app = typer.Typer(
    name="deepict-dask",
    help="Find particles, membranes and organelles in cryo-electron tomograms, chunk by chunk.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # which takes "[default: 0.5]" for markup, and cuts options' names
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
models_app = typer.Typer(help="Bundled models and model files.", no_args_is_help=True)
picks_app = typer.Typer(help="Particle lists.", no_args_is_help=True)
evaluate_app = typer.Typer(help="Compare a result with the truth.", no_args_is_help=True)
dataset_app = typer.Typer(help="Sources of tomograms.", no_args_is_help=True)
config_app = typer.Typer(help="Configs of runs.", no_args_is_help=True)
app.add_typer(models_app, name="models")
app.add_typer(picks_app, name="picks")
app.add_typer(evaluate_app, name="evaluate")
app.add_typer(dataset_app, name="dataset")
app.add_typer(config_app, name="config")

volumes.register(app)
segmenting.register(app)
datasets.register(dataset_app)
slices.register(app)
picking.register(app)
particles.register(picks_app)
comparing.register(picks_app)
filaments.register(app)
evaluating.register(evaluate_app)
running.register(app, models_app)
training.register(app)
status.register(app)
reporting.register(app)
viewing.register(app)
project.register(config_app)
fetching.register(app)

_debug = False
_is_program = False
_UsageError: Any = typer.BadParameter.__base__
"""Base of the parser's errors: Click's, or that of the copy of Click inside newer Typer."""
_INTERRUPTED = 130
"""What Typer returns after a Ctrl-C."""


def show_version(wanted: bool) -> None:
    """Print the version and leave, before a command is asked for."""
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def common(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001 - its callback does the work
        bool,
        typer.Option("--version", help="Show the version.", is_eager=True, callback=show_version),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    log_level: Annotated[str, typer.Option("--log-level", help="debug to error.")] = "warning",
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Errors only; results are in files.")
    ] = False,
    log_format: Annotated[
        str, typer.Option("--log-format", help="text; json: one object a line.")
    ] = "text",
    log_file: Annotated[
        Path | None,
        typer.Option("--log-file", help="Everything that is said, with the time, goes here too"),
    ] = None,
) -> None:
    """Translate the options that come before the command."""
    global _debug
    _debug = debug
    messages.begin(level=log_level, quiet=quiet, form=log_format, file=log_file)
    if not _is_program:  # else what stops the command is yet to be said
        context.call_on_close(messages.end)
    for noisy in ("distributed", "asyncio", "tornado"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    logging.getLogger("tornado.application").addFilter(is_worth_showing)


def is_worth_showing(record: logging.LogRecord) -> bool:
    """Say whether a log line is more than an interruption that distributed was not ready for.

    Its ``sync`` cannot cancel what it has not begun yet, and says so with a traceback; the command
    ends as it should (seen with distributed 2026.8, on a busy machine).
    """
    return "sync.<locals>.cancel" not in record.getMessage()


def fail(error: DeepictError) -> NoReturn:
    """Print one message and leave."""
    messages.say_error(error)
    sys.exit(error.exit_code)


def usage_text(error: Any) -> str:
    """Return a parser's error as one line: the option, what it takes, what was found, the help."""
    problems: list[Any] = getattr(error.__cause__, "errors", list)()
    found = f", found {problems[0]['input']!r}" if problems else ""
    help_of = error.ctx.command_path if error.ctx else "deepict-dask"
    return f"{error.format_message().rstrip('.')}{found}; see `{help_of} --help`"


def in_words(error: BaseException) -> DeepictError:
    """Return any error as one that has a message for people."""
    if isinstance(error, DeepictError):
        return error
    if isinstance(error, _UsageError):
        return ConfigError(usage_text(error))
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return WorkFailedError("interrupted; run the same command again to continue")
    if isinstance(error, OSError):
        from ..engine.arrays import explain

        return explain(error, "writing", str(error.filename or "output"))
    return WorkFailedError(
        f"deepict-dask itself failed ({type(error).__name__}: {error}); this is a defect: please "
        "report it with what `deepict-dask --debug COMMAND ...` prints"
    )


def run_guarded(command: Callable[[], Any]) -> None:
    """Run a command; turn errors into one message and an exit code."""
    global _is_program
    _is_program = True
    try:
        _run_guarded(command)
    finally:
        _is_program = False
        messages.end()


def _run_guarded(command: Callable[[], Any]) -> NoReturn:
    """Run a command and leave."""
    try:
        code = command() or 0
    except (Exception, KeyboardInterrupt) as error:
        if _debug:
            raise
        if type(error).__name__ == "NoArgsIsHelpError":
            sys.exit(error.show() or 2)  # type: ignore[union-attr]
        fail(in_words(error))
    if code == _INTERRUPTED:
        fail(in_words(KeyboardInterrupt()))
    sys.exit(code)


def main() -> None:
    """Run the command line."""
    run_guarded(lambda: app(standalone_mode=False))


if __name__ == "__main__":
    main()
