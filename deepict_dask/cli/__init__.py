"""The command line: translates options into settings, nothing else.

Exit codes: 0 done; 1 some work failed (named); 2 the request is wrong. One message, no traceback
(``--debug`` shows it). Heavy libraries are imported by the command that needs them.
"""

from __future__ import annotations

import logging
import sys
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
    particles,
    picking,
    project,
    running,
    slices,
    status,
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
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
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
datasets.register(dataset_app)
slices.register(app)
picking.register(app, picks_app)
particles.register(picks_app)
comparing.register(picks_app)
filaments.register(app)
evaluating.register(evaluate_app)
running.register(app, models_app)
status.register(app)
project.register(config_app)
fetching.register(app)

_debug = False
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
    version: Annotated[  # noqa: ARG001 - its callback does the work
        bool,
        typer.Option("--version", help="Show the version.", is_eager=True, callback=show_version),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    log_level: Annotated[str, typer.Option("--log-level", help="debug to error.")] = "warning",
) -> None:
    """Translate the options that come before the command."""
    global _debug
    _debug = debug
    if log_level.upper() not in logging.getLevelNamesMapping():
        raise ConfigError(f"--log-level: expected debug to error, found {log_level!r}")
    logging.basicConfig(level=log_level.upper(), format="%(levelname)s: %(message)s")
    for noisy in ("distributed", "asyncio", "tornado"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)


def fail(error: DeepictError) -> NoReturn:
    """Print one message and leave."""
    print(f"error: {error}", file=sys.stderr)
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
