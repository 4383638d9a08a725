"""One plot for each set of rows, as SVG: a group of bars for each row that several took part in.

Bars are of logarithmic length, since rows are nanoseconds and seconds; the thin line is from the shortest sample to the
longest. Written by hand: the same figures give the same bytes, and need no library that draws.
"""

from __future__ import annotations

import math
import statistics
from xml.sax.saxutils import escape

from harness import Contest, show

WIDTH, LABEL, NAME = 960, 300, 130  # pixels: of all, of what was done, and of who did it
FIGURE = 80  # and of the figure behind a bar
BAR, GAP, TOP = 13, 9, 34
OURS, OTHERS, LINE, TEXT = "#c2410c", "#94a3b8", "#334155", "#1e293b"
FONT = 'font-family="sans-serif" font-size="11"'


def groups(results):
    """What was done, its unit, and by whom with which samples; ours comes first."""
    for result in results:
        if isinstance(result, Contest):
            bars = [(name, result.counted(name), name == result.ours) for name in result.figures]
        elif result.reference:
            ours, theirs = ("numpack", result.ours, True), (result.reference_name.strip("`"), result.reference, False)
            bars = [ours, theirs]
        else:
            bars = [("numpack" if result.unit == "s" else "", result.ours, True)]
        bars = [(name, samples, is_ours) for name, samples, is_ours in bars if samples and min(samples) > 0]
        if bars:
            yield result.what.replace("`", ""), result.unit, bars


def write(folder, name, results):
    """Writes ``folder/name.svg``, unless there is nothing to be shown; returns its path, or None."""
    found = list(groups(results))
    if not found:
        return None
    path = folder / f"{name}.svg"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(svg(name, found))
    return path


def scales(found):
    """For each unit the decades that all its figures lie in."""
    ends = {}
    for _, unit, bars in found:
        low = min(min(samples) for _, samples, _ in bars)
        high = max(max(samples) for _, samples, _ in bars)
        before = ends.get(unit, (low, high))
        ends[unit] = (min(low, before[0]), max(high, before[1]))
    return {unit: (math.floor(math.log10(low)), max(math.ceil(math.log10(high)), math.floor(math.log10(low)) + 1)) for unit, (low, high) in ends.items()}


def svg(name, found):
    left, room = LABEL + NAME, WIDTH - LABEL - NAME - FIGURE
    decades = scales(found)
    parts, y = [], TOP
    for what, unit, bars in found:
        low, high = decades[unit]

        def place(figure, low=low, high=high):
            return left + room * (math.log10(figure) - low) / (high - low)

        parts.append(text(4, y + BAR - 3, shortened(what, 54), "start"))
        for who, samples, is_ours in bars:
            median, middle = statistics.median(samples), y + BAR / 2
            colour = OURS if is_ours else OTHERS
            length = max(1.0, place(median) - left)
            parts.append(text(left - 6, y + BAR - 3, shortened(who, 22), "end"))
            parts.append(f'<rect x="{left}" y="{y + 1}" width="{length:.1f}" height="{BAR - 2}" fill="{colour}"/>')
            ends = f'x1="{place(min(samples)):.1f}" x2="{place(max(samples)):.1f}"'
            parts.append(f'<line {ends} y1="{middle}" y2="{middle}" stroke="{LINE}"/>')
            parts.append(text(place(max(median, max(samples))) + 4, y + BAR - 3, show(median, unit), "start"))
            y += BAR
        y += GAP
    title = f"{name}: medians, shorter is better" if set(decades) <= {"s", "MiB"} else f"{name}: medians"
    units = ", ".join(f"{show(10**low, unit)} to {show(10**high, unit)}" for unit, (low, high) in decades.items())
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}" {FONT} fill="{TEXT}">'
    background = f'<rect width="{WIDTH}" height="{y}" fill="#ffffff"/>'
    heading = text(4, 18, f"{title}; logarithmic, {units}", "start")
    return "\n".join([head, background, heading, *parts, "</svg>", ""])


def text(x, y, content, anchor):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'


def shortened(content, longest):
    return content if len(content) <= longest else content[: longest - 3] + "..."
