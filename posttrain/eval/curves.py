"""Curves as inline SVG: a line per series, an axis that people can read, and the values under the pointer."""

from __future__ import annotations

import math
from html import escape

from .page import embedded

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 250, 76, 14, 12, 28
POINTS = 500  # drawn of each series; more updates are averaged in groups

Series = dict[int, float]  # by update


def curve(title: str, series: dict[str, Series], marks: frozenset[str] = frozenset()) -> str:
    """A figure of up to two series over updates; those in `marks` are drawn with a dot per value. '' where empty."""
    series = {name: {x: y for x, y in points.items() if math.isfinite(y)} for name, points in series.items()}
    series = {name: thinned(points) for name, points in series.items() if points}
    if not series:
        return ""
    xs = [x for points in series.values() for x in points]
    ys = [y for points in series.values() for y in points.values()]
    x0, x1, (y0, y1, step) = min(xs), max(xs), scale(min(ys), max(ys))

    def at(x: float, y: float) -> tuple[float, float]:
        return (LEFT + (x - x0) / max(1, x1 - x0) * (WIDTH - LEFT - RIGHT),
                TOP + (1 - (y - y0) / (y1 - y0)) * (HEIGHT - TOP - BOTTOM))

    parts = [f'<svg class="curve" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    for i in range(round((y1 - y0) / step) + 1):
        y = at(x0, y0 + i * step)[1]
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
                     f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{y0 + i * step:.4g}</text>')
    for x, anchor in ((x0, "start"), (x1, "end")) if x1 > x0 else ((x0, "start"),):
        parts.append(f'<text x="{at(x, y0)[0]:.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">update {x:,}</text>')
    for n, (name, points) in enumerate(series.items()):
        places = [at(x, y) for x, y in sorted(points.items())]
        if len(places) > 1:
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            parts.append(f'<polyline class="s{n % 2}" points="{line}"/>')
        if name in marks or len(places) == 1:
            parts += [f'<circle class="s{n % 2}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>' for x, y in places]
    parts.append(f'<line class="cross" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/></svg>')
    legend = " ".join(f'<i class="s{n % 2}"></i>{escape(name)}' for n, name in enumerate(series))
    rows = [[x, *(points.get(x) for points in series.values())] for x in sorted(set(xs))]
    data = {"low": x0, "high": x1, "left": LEFT, "span": WIDTH - LEFT - RIGHT, "width": WIDTH, "names": list(series),
            "rows": rows}
    return (f'<figure data-curve><figcaption><b>{escape(title)}</b> {legend}</figcaption>{"".join(parts)}'
            f'<output></output>'
            f'<script type="application/json">{embedded(data)}</script></figure>')


def thinned(points: Series) -> Series:
    """At most POINTS values: of each group of updates the mean, at its last update."""
    if len(points) <= POINTS:
        return points
    xs, size = sorted(points), -(-len(points) // POINTS)
    groups = [xs[i:i + size] for i in range(0, len(xs), size)]
    return {group[-1]: sum(points[x] for x in group) / len(group) for group in groups}


def scale(low: float, high: float) -> tuple[float, float, float]:
    """An axis that holds low … high: its ends and its step, one, two or five times a power of ten."""
    if high - low < 1e-12 * max(1e-300, abs(high)):
        pad = abs(high) / 2 or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / 4
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    return math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step, step
