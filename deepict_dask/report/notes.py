"""What was left out of a tomogram's results, and why, in sentences for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .sources import PicksSource, RunSource, TomogramSource

__all__ = ["skipped"]

_NOT_DONE = {
    "failed": "the tomogram failed before",
    "stopped": "the run was stopped before",
    "running": "the run is at work",
    "unfinished": "the run ended before",
    "waiting": "the run has not come to it",
}


def skipped(run: RunSource, source: TomogramSource) -> list[str]:
    """Return what is missing of a tomogram's results, and why.

    Examples
    --------
    >>> from pathlib import Path
    >>> from deepict_dask.report.sources import RunSource, TomogramSource
    >>> run = RunSource(Path("out"), "run", (), config={"equalize": None, "keep_scores": False})
    >>> for line in skipped(run, TomogramSource("TS_1", Path("out/TS_1"), "done")):
    ...     print(line)
    equalization: not asked for (the config has no section equalize)
    score maps: not stored (keep_scores: false)
    """
    of_picks = (note for picks in source.picks for note in _of_picks(picks))
    return [*_by_config(run), *_not_made(source), *source.damaged, *of_picks]


def _by_config(run: RunSource) -> Iterator[str]:
    """Yield what the settings leave out."""
    if run.kind != "run":
        return
    if run.config is None:
        yield "settings: the run's plan does not hold them (it is of an older version)"
        return
    if "keep_scores" not in run.config:  # a config of DeePiCt
        return
    if run.config.get("equalize") is None:
        yield "equalization: not asked for (the config has no section equalize)"
    if run.config.get("keep_scores") is False:
        yield "score maps: not stored (keep_scores: false)"
    if run.config.get("pick") == []:
        yield "picks: not asked for (the config has no section pick)"


def _not_made(source: TomogramSource) -> Iterator[str]:
    """Yield the outputs that are missing."""
    why = _NOT_DONE.get(source.state, "")
    for output in source.outputs:
        if output.state == "earlier":
            yield f"{output.output}: of an earlier run; this one has not looked at it"
        elif output.state != "done":
            counted = (
                ""
                if output.n_windows is None
                else (f", {output.n_done} of {output.n_windows} windows are")
            )
            yield f"{output.output}: not made{counted}: {why}" if why else str(output)


def _of_picks(picks: PicksSource) -> Iterator[str]:
    """Yield what a folder of picks goes without."""
    settings = picks.settings
    for region in _wanted_regions(settings):
        if region not in picks.regions:
            yield (
                f"{picks.name}: region {region}: this tomogram has no mask of it, so it did not "
                "restrict the picks"
            )
    of_components = settings.get("method", "components") == "components"
    if not of_components:
        yield f"{picks.name}: segmentation: the method {settings['method']} makes none"
    if picks.n_picks == 0:
        what = "cluster" if of_components else "pick"
        yield f"{picks.name}: nothing was picked: no {what} is within the limits and the regions"


def _wanted_regions(settings: dict[str, Any]) -> list[str]:
    """Return the regions that restrict picks."""
    contacts = [contact.get("region") for contact in settings.get("contacts", ())]
    names = [settings.get("region"), *contacts, *(settings.get("distances") or ())]
    return [name for name in dict.fromkeys(names) if name]
