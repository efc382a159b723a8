"""The command that brings deposits here: fetch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..core.errors import ConfigError
from .options import OverwriteOption, ProgressOption, say

if TYPE_CHECKING:
    from ..fetch import FetchReport, Survey


def fetch(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="EMPIAR-NNNNN, or URL of a folder or file.")
    ],
    folder: Annotated[Path | None, typer.Argument(metavar="DEST", help="Folder to fill.")] = None,
    match: Annotated[
        list[str] | None,
        typer.Option("--match", metavar="GLOB", help="Paths to fetch, in data/; repeatable"),
    ] = None,
    list_only: Annotated[
        bool, typer.Option("--list", "--dry-run", help="Show files and sizes, fetch none.")
    ] = False,
    manifest: Annotated[
        str | None, typer.Option("--manifest", help="File or URL that lists the files")
    ] = None,
    checksums: Annotated[
        str | None, typer.Option("--checksums", help="File or URL such as sha256sum writes")
    ] = None,
    workers: Annotated[int, typer.Option("--workers", min=1, max=16, help="Files at a time.")] = 4,
    retries: Annotated[
        int, typer.Option("--retries", min=0, help="Of a file, in a row without progress.")
    ] = 5,
    base_url: Annotated[
        str | None,
        typer.Option("--base-url", envvar="DEEPICT_DASK_EMPIAR_URL", help="Mirror of EMPIAR"),
    ] = None,
    overwrite: OverwriteOption = False,
    progress: ProgressOption = True,
) -> None:
    """Fetch files of a public deposit; run again to continue where it stopped.

    Example: deepict-dask fetch EMPIAR-10988 --match 'DEF/tomograms/*' empiar-10988
    """
    from ..fetch import EMPIAR_URL, FetchSettings, Patience, Selection, survey
    from ..fetch import fetch as fetch_files

    selection = Selection(tuple(match or ()), manifest, checksums, base_url or EMPIAR_URL)
    settings = FetchSettings(selection, workers, Patience(retries), overwrite, progress)
    if list_only:
        found = survey(source, settings)
        _show(found)
        found.check()
        return
    if folder is None:
        raise ConfigError(f"fetch {source}: expected a folder DEST to fill, found none; or --list")
    report = fetch_files(source, folder, settings)
    _summarise(report, folder)
    report.check()


def _show(found: Survey) -> None:
    """Print one line per file, then the sum."""
    from ..engine.budget import format_bytes

    offers = found.offers
    for offer in offers:
        size = "?" if offer.size_bytes is None else str(offer.size_bytes)
        say(f"{size:>15}  {offer.remote.path}")
    known = [offer.size_bytes for offer in offers if offer.size_bytes is not None]
    unknown = len(offers) - len(known)
    more = f", {unknown} of unknown size" if unknown else ""
    say(f"{len(offers)} files, {sum(known)} bytes ({format_bytes(sum(known))}){more}")


def _summarise(report: FetchReport, folder: Path) -> None:
    from ..engine.budget import format_bytes

    kept = f", {len(report.kept)} were there" if report.kept else ""
    say(
        f"{len(report.fetched)} files ({format_bytes(report.size_bytes)}) fetched to {folder}{kept}"
    )
    if report.unverified:
        say(f"{len(report.unverified)} had no checksum: only their sizes were compared")


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command()(fetch)
