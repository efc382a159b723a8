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
from ..core.errors import ConfigError, DeepictError
from . import picking, running, volumes

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
app.add_typer(models_app, name="models")
app.add_typer(picks_app, name="picks")
app.add_typer(evaluate_app, name="evaluate")

volumes.register(app)
picking.register(app, picks_app, evaluate_app)
running.register(app, models_app)

_debug = False


@app.callback()
def common(
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    log_level: Annotated[str, typer.Option("--log-level", help="debug to error.")] = "warning",
) -> None:
    """Translate the options that come before the command."""
    global _debug
    _debug = debug
    if version:
        typer.echo(__version__)
        raise typer.Exit
    if log_level.upper() not in logging.getLevelNamesMapping():
        raise ConfigError(f"--log-level: expected debug to error, found {log_level!r}")
    logging.basicConfig(level=log_level.upper(), format="%(levelname)s: %(message)s")
    for noisy in ("distributed", "asyncio", "tornado"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)


def fail(error: DeepictError) -> NoReturn:
    """Print one message and leave."""
    print(f"error: {error}", file=sys.stderr)
    sys.exit(error.exit_code)


def run_guarded(command: Callable[[], Any]) -> None:
    """Run a command; turn errors into one message and an exit code."""
    import click

    try:
        sys.exit(command() or 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except DeepictError as error:
        if _debug:
            raise
        fail(error)
    except (KeyboardInterrupt, click.Abort):
        if _debug:
            raise
        print("error: interrupted; run the same command again to continue", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        if _debug:
            raise
        from ..engine.arrays import explain

        fail(explain(error, "writing", str(error.filename or "output")))


def main() -> None:
    """Run the command line."""
    run_guarded(lambda: app(standalone_mode=False))


if __name__ == "__main__":
    main()
