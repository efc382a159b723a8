"""The part of a report that is about one tomogram.

The viewer; for each folder of picks histograms of cluster size, score and distances to regions with
the limits that were chosen; the spectrum before and after equalization; what was skipped and why.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import DeepictError
from ..io.spectrum import read_spectrum
from ..io.volumes import open_volume
from .charts import Limit, curves_chart, histogram_chart, short
from .elements import Html, element, join
from .histograms import column_names, histogram_of
from .notes import skipped
from .spectra import Curve, estimated_spectrum, scaled_target
from .viewer import COLOURS, make_viewer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..core.spectrum import Spectrum
    from .sources import PicksSource, RunSource, TomogramSource
    from .viewer import Viewer

__all__ = ["TomogramPart", "badge", "make_part"]


@dataclass(frozen=True)
class TomogramPart:
    """What a report says of one tomogram."""

    body: Html
    thumbnail: str | None
    """Data URI; None where no slice could be read."""


def make_part(run: RunSource, source: TomogramSource) -> TomogramPart:
    """Make the part of a report that is about one tomogram."""
    viewer = make_viewer(source)
    spectrum, spectrum_notes = _spectrum(run, source)
    notes = [*skipped(run, source), *viewer.notes, *spectrum_notes]
    failed = None
    if source.reason:
        failed = element(
            "p", element("strong", f"{source.state}: "), source.reason, class_="alert", role="note"
        )
    body = join(
        element("header", element("h2", source.name, " ", badge(source.state)), class_="name"),
        failed,
        *_warnings(source),
        _facts(source, viewer),
        viewer.markup,
        *(_picks(one, COLOURS[i % len(COLOURS)]) for i, one in enumerate(source.picks)),
        spectrum,
        _notes(notes),
    )
    return TomogramPart(body, viewer.thumbnail)


def _warnings(source: TomogramSource) -> list[Html]:
    """Return what the run warned of before it ran a network."""
    return [
        element("p", element("strong", "warning: "), text, class_="alert", role="note")
        for text in source.warnings
    ]


def badge(state: str) -> Html:
    """Return the state of a tomogram in its colour.

    Examples
    --------
    >>> badge("done")
    '<span class="badge done">done</span>'
    """
    return element("span", state, class_=f"badge {state}")


def _facts(source: TomogramSource, viewer: Viewer) -> Html:
    """Return size, spacing, time and picks as a list of terms."""
    rows: list[tuple[str, str]] = [("tomogram", str(source.tomogram or "not known"))]
    header = viewer.header
    if header is not None:
        if not viewer.shown.startswith("tomogram "):
            rows.append(("shown instead", viewer.shown))
        spacing = header.voxel_spacing_angstrom
        rows += [
            ("voxels (z, y, x)", " × ".join(map(str, header.shape))),
            ("voxel spacing", "not stated" if spacing is None else f"{spacing:g} Å"),
        ]
    if source.seconds is not None:
        rows.append(("time", f"{source.seconds:.1f} s"))
    counts = {name: source.n_picks(name) for name in source.expected_picks}
    rows += [(name, f"{n} picks") for name, n in counts.items() if n is not None]
    return element("dl", *(join(element("dt", k), element("dd", v)) for k, v in rows))


def _picks(picks: PicksSource, colour: str) -> Html:
    """Return the histograms of a folder of picks and how it was made."""
    charts = list(_charts(picks, colour))
    shown = element("div", *charts, class_="charts")
    settings = {k: v for k, v in picks.settings.items() if v not in (None, [], {})}
    swatch = element("span", class_="swatch segmentation", style=f"--colour:{colour}")
    return element(
        "section",
        element("h3", swatch, picks.name, ": ", f"{picks.n_picks} picks"),
        shown if charts else element("p", "No clusters to count.", class_="quiet"),
        element(
            "details",
            element("summary", "Settings of these picks"),
            element("dl", *(join(element("dt", k), element("dd", v)) for k, v in settings.items())),
        ),
        class_="card picks",
    )


def _charts(picks: PicksSource, colour: str) -> Iterator[Html]:
    """Yield the histograms that the columns of a folder of picks allow."""
    try:
        names = column_names(picks.folder)
        if "n_voxels" in names:
            yield from _chart(
                picks, "n_voxels", "cluster size", "voxels", _size_limits(picks.settings), colour
            )
        score = next((name for name in ("score_mean", "score") if name in names), None)
        if score is not None:
            yield from _chart(
                picks, score, "score", "mean score of a cluster" if score != "score" else "score",
                _score_limits(picks.settings), colour,
            )  # fmt: skip
        for name in names:
            if name.startswith("distance_") and name.endswith("_nm"):
                region = name.removeprefix("distance_").removesuffix("_nm")
                yield from _chart(picks, name, f"distance to {region}", "nm", [], colour)
    except (OSError, ValueError) as error:
        yield element("p", f"The clusters cannot be read: {error}", class_="quiet")


def _chart(  # noqa: PLR0917 - private
    picks: PicksSource, column: str, title: str, unit: str, limits: list[Limit], colour: str
) -> Iterator[Html]:
    """Yield one histogram with what it does not show."""
    is_size = column == "n_voxels"
    ends = (0.0, 1.0) if column.startswith("distance_") else tuple(one.value for one in limits)
    found = histogram_of(picks.folder, column, logarithmic=is_size, include=ends)
    if found is None:
        return
    lines = [f"{found.n} clusters, mean {short(found.mean)}"]
    if found.n_missing:
        limit = picks.settings.get("distance_limit_nm", "?")
        lines.append(f"{found.n_missing} farther than {limit} nm, or without a value")
    if is_size and limits:
        lines.append("clusters outside the limits are not kept, so not counted")
    chart = histogram_chart(found, title=title, unit=unit, limits=limits, colour=colour)
    caption = element("figcaption", element("b", title), ": ", "; ".join(lines))
    yield element("figure", chart, caption)


def _size_limits(settings: dict[str, Any]) -> list[Limit]:
    """Return the limits of cluster sizes."""
    chosen = ["min_size", "max_size"]
    return [Limit(settings[key], key) for key in chosen if (settings.get(key) or 0) > 0]


def _score_limits(settings: dict[str, Any]) -> list[Limit]:
    """Return the threshold of the voxels of a cluster."""
    if settings.get("label_value") is not None or settings.get("threshold") is None:
        return []
    return [Limit(settings["threshold"], "threshold")]


def _spectrum(run: RunSource, source: TomogramSource) -> tuple[Html | None, list[str]]:
    """Return the spectrum before and after equalization with the target, and what is missing."""
    notes: list[str] = []
    curves = []
    told = source.voxel_spacing_angstrom
    volumes = (("tomogram", source.tomogram, told), ("equalized", source.equalized, None))
    for name, path, spacing in volumes:
        curve = _curve(path, spacing, notes)
        if curve is not None:
            curves.append((name, curve))
    is_physical = all(curve.is_physical for _, curve in curves)
    unit = "1/Å" if is_physical else "1/voxel"
    if curves and is_physical:
        target = _target(run, curves[-1][1], notes)
        curves += [("target", target)] if target is not None else []
    if not curves:
        return None, notes
    chart = curves_chart(curves, title="radial amplitude spectrum", unit=f"frequency in {unit}")
    caption = element(
        "figcaption",
        "Mean Fourier amplitude, estimated from at most twelve boxes of 128 voxels a side, in "
        "units in which white noise has 0.89. Of the target only the shape counts.",
    )
    figure = element("figure", chart, caption)
    return element(
        "section", element("h3", "Spectrum"), element("div", figure, class_="charts"), class_="card"
    ), notes


def _curve(path: Path | None, spacing: float | None, notes: list[str]) -> Curve | None:
    if path is None or not path.exists():
        return None
    try:
        reader = open_volume(path, spacing_required=False, voxel_spacing_angstrom=spacing)
        return estimated_spectrum(reader)
    except DeepictError as error:
        notes.append(f"the spectrum of {path.name} is not shown: {error}")
    return None


def _target(run: RunSource, level: Curve, notes: list[str]) -> Curve | None:
    """Return the target of the equalization at the level of a curve."""
    settings = (run.config or {}).get("equalize")
    if not settings:
        return None
    try:
        target = _read_target(Path(settings["target"]))
    except DeepictError as error:
        notes.append(f"the target spectrum is not shown: {error}")
        return None
    if not target.is_physical:
        notes.append(
            "the target spectrum is not shown: it is by place, as DeePiCt writes it, and the place "
            "depends on the box it was measured on"
        )
        return None
    return scaled_target(target, level)


def _read_target(path: Path) -> Spectrum:
    """Return the spectrum of a table, or of a model's card."""
    if path.suffix != ".safetensors":
        return read_spectrum(path)
    from ..jobs.equalize import spectrum_of_model

    return spectrum_of_model(path)[0]


def _notes(notes: list[str]) -> Html:
    """Return what was skipped."""
    lines = element("ul", *(element("li", note) for note in notes))
    nothing = element("p", "Nothing.", class_="quiet")
    heading = element("h3", "What was skipped, and why")
    return element("section", heading, lines if notes else nothing, class_="card notes")
