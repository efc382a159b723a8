"""Histograms and curves as SVG that stands in the page itself.

Colours come from the page's style (``currentColor``, classes), so that a chart is right in a light
and in a dark window. Every chart has a title for screen readers; each bar says its numbers when
pointed at.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .elements import Html, element, join

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .histograms import Histogram
    from .spectra import Curve

__all__ = ["Limit", "curves_chart", "histogram_chart", "short"]

_WIDTH, _HEIGHT = 440, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 24, 40, 44


@dataclass(frozen=True)
class Limit:
    """A value that was chosen, drawn as a line across a histogram."""

    value: float
    name: str


@dataclass(frozen=True)
class _Axis:
    """Where a value lies along an axis, in pixels."""

    low: float
    high: float
    start: float
    """Pixel of the lowest value."""
    stop: float
    is_logarithmic: bool = False
    counts: bool = False
    """Whether values are whole numbers."""

    def at(self, value: float) -> float:
        """Return the pixel of a value."""
        low, high, value = (self._scaled(v) for v in (self.low, self.high, value))
        part = (value - low) / (high - low) if high > low else 0.5
        return round(self.start + (self.stop - self.start) * part, 1)

    def _scaled(self, value: float) -> float:
        return math.log10(max(value, 1e-300)) if self.is_logarithmic else value

    def ticks(self) -> list[float]:
        """Return round values along the axis."""
        return self._decades() if self.is_logarithmic else self._steps()

    def _steps(self) -> list[float]:
        raw = (self.high - self.low) / 5
        if raw <= 0:
            return [self.low]
        raw = max(raw, 1.0) if self.counts else raw
        unit = 10.0 ** math.floor(math.log10(raw))
        step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= raw * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]

    def _decades(self) -> list[float]:
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        wide = last - first > 3
        found = [
            10.0**power * m
            for power in range(first, last + 1)
            for m in ((1,) if wide else (1, 2, 5))
        ]
        return [value for value in found if self.low <= value <= self.high]


def short(value: float) -> str:
    """Return a number in few characters.

    Examples
    --------
    >>> short(1234567), short(2000), short(0.25), short(0), short(3e-6)
    ('1.23M', '2000', '0.25', '0', '3e-06')
    """
    if abs(value) >= 1e6:
        return f"{value / 1e6:.3g}M"
    if abs(value) >= 1e4:
        return f"{value / 1e3:.3g}k"
    return f"{value:.4g}"


def histogram_chart(
    found: Histogram, *, title: str, unit: str, limits: Sequence[Limit] = (), colour: str = ""
) -> Html:
    """Draw a histogram with the limits that were chosen.

    Parameters
    ----------
    found
        Counts; bins that grow by a factor are drawn on a logarithmic axis.
    title
        What is counted.
    unit
        Below the axis.
    limits
        Lines across it.
    colour
        Of the bars.

    Examples
    --------
    >>> from deepict_dask.report.histograms import Histogram
    >>> chart = histogram_chart(Histogram((0, 1, 2), (3, 1), 0.75), title="score", unit="")
    >>> chart.count("<rect"), "score: 4 values, mean 0.75" in chart
    (2, True)
    """
    x = _Axis(found.edges[0], found.edges[-1], _LEFT, _WIDTH - _RIGHT, _is_logarithmic(found.edges))
    y = _Axis(0, max(1, *found.counts), _HEIGHT - _BOTTOM, _TOP, counts=True)
    summary = f"{title}: {found.n} values, mean {short(found.mean)}"
    summary += "".join(f"; {limit.name} {short(limit.value)}" for limit in limits)
    marks = join(_bars(found, x, y, colour), _limits(limits, x))
    return _chart(summary, marks, x, y, names=(unit, "clusters"))


def _is_logarithmic(edges: Sequence[float]) -> bool:
    """Say whether bins grow by a factor."""
    first, last = edges[1] - edges[0], edges[-1] - edges[-2]
    return edges[0] > 0 and last > 1.0001 * first


def _bars(found: Histogram, x: _Axis, y: _Axis, colour: str) -> Html:
    bars = []
    for count, low, high in zip(found.counts, found.edges, found.edges[1:], strict=False):
        if count:
            left, width = x.at(low), max(x.at(high) - x.at(low) - 0.6, 0.8)
            tip = element("title", f"{short(low)} to {short(high)}: {count}")
            bars.append(
                element(
                    "rect", tip, x=left, y=y.at(count), width=round(width, 1),
                    height=round(y.at(0) - y.at(count), 1), fill=colour or None,
                )
            )  # fmt: skip
    return element("g", *bars, class_="bars")


def _limits(limits: Sequence[Limit], x: _Axis) -> Html:
    drawn = []
    for limit in limits:
        at = x.at(limit.value)
        near_end = at > _WIDTH * 0.6
        drawn += [
            element("line", x1=at, x2=at, y1=_TOP - 4, y2=_HEIGHT - _BOTTOM, class_="limit"),
            element(
                "text", f"{limit.name} {short(limit.value)}", x=at - 4 if near_end else at + 4,
                y=_TOP - 10, class_="limit", text_anchor="end" if near_end else None,
            ),
        ]  # fmt: skip
    return join(*drawn)


def curves_chart(curves: Sequence[tuple[str, Curve]], *, title: str, unit: str) -> Html:
    """Draw spectra, amplitudes on a logarithmic axis.

    Parameters
    ----------
    curves
        Names and curves.
    title
        What they are.
    unit
        Of the frequency.
    """
    positive = [
        (name, [(f, a) for f, a in zip(c.frequency, c.amplitude, strict=True) if a > 0])
        for name, c in curves
    ]
    points = [point for _, line in positive for point in line]
    amplitudes = [a for _, a in points] or [1.0]
    highest = max((f for f, _ in points), default=1.0)
    x = _Axis(0, highest, _LEFT, _WIDTH - _RIGHT)
    floor = max(min(amplitudes), max(amplitudes) * 1e-4)
    y = _Axis(floor / 1.2, max(amplitudes) * 1.2, _HEIGHT - _BOTTOM, _TOP, is_logarithmic=True)
    lines, legend = [], []
    for number, (name, line) in enumerate(positive):
        path = " ".join(f"{x.at(f)},{y.at(max(a, floor))}" for f, a in line)
        row = _TOP + 8 + 15 * number
        lines.append(element("polyline", points=path, class_=f"curve curve-{number}"))
        legend += [
            element(
                "line", x1=_WIDTH - 140, x2=_WIDTH - 114, y1=row - 4, y2=row - 4,
                class_=f"curve curve-{number}",
            ),
            element("text", name, x=_WIDTH - 108, y=row),
        ]  # fmt: skip
    return _chart(title, join(*lines, *legend), x, y, names=(unit, "amplitude"))


def _chart(summary: str, marks: Html, x: _Axis, y: _Axis, *, names: tuple[str, str]) -> Html:
    """Put marks into axes."""
    floor = _HEIGHT - _BOTTOM
    across = [
        join(
            element("line", x1=x.at(v), x2=x.at(v), y1=floor, y2=floor + 4),
            element("text", short(v), x=x.at(v), y=floor + 18, text_anchor="middle"),
        )
        for v in x.ticks()
    ]
    up = [
        join(
            element("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y.at(v), y2=y.at(v), class_="grid"),
            element("text", short(v), x=_LEFT - 6, y=y.at(v) + 4, text_anchor="end"),
        )
        for v in y.ticks()
    ]
    frame = element("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=floor, y2=floor)
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    below, above = names
    titles = join(
        element("text", below, x=middle, y=_HEIGHT - 6, text_anchor="middle"),
        element("text", above, x=6, y=14),
    )
    return element(
        "svg", element("title", summary), element("g", *up, *across, frame, class_="axes"),
        marks, titles, class_="chart", role="img", aria_label=summary,
        viewbox=f"0 0 {_WIDTH} {_HEIGHT}",
    )  # fmt: skip
