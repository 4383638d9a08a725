"""What the benchmark says of its figures: Markdown tables, and JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
from pathlib import Path

from harness import Contest, Result, show


def show_spread(figures, unit):
    return f"{show(statistics.median(figures), unit)} ({show(min(figures), unit)} - {show(max(figures), unit)})"


def pair_cells(result):
    """One result of two, as the cells of its table."""
    if result.reference:
        ratios = result.ratios()
        reference = f"{result.reference_name} {show(statistics.median(result.reference), result.unit)}"
        ratio = f"{statistics.median(ratios):.2f}x ({min(ratios):.2f} - {max(ratios):.2f})"
        ours = show(statistics.median(result.ours), result.unit)
    else:
        reference, ratio = "", ""
        ours = show_spread(result.ours, result.unit)
    goal = result.goal.text(result.unit) if result.goal else ""
    return [result.what, reference, ours, ratio, share_cell(result), goal, result.verdict()]


def share_cell(result):
    """How much is reached of what the machine can do at best, or nothing where that is not known."""
    if (shared := result.shared()) is None:
        return ""
    ceiling, share = shared
    return f"{share:.0%} of {ceiling.name}, {show(ceiling.seconds, 's')}"


def contest_cells(contest, names):
    """One contest as the cells of a table with a column for each of ``names``."""
    cells = [contest.what]
    for name in names:
        figures = contest.counted(name) if name in contest.figures else []
        if len(set(figures)) == 1:
            cells.append(show(figures[0], contest.unit))
        else:
            cells.append(show_spread(figures, contest.unit) if figures else "")
    goals = [
        f"{statistics.median(contest.ratios(rival)):.2f}x {rival}, {goal.text(contest.unit)}"
        for goal, rival in contest.judged()
    ]
    if contest.limit is not None:
        goals.append(contest.limit.text(contest.unit))
    return [*cells, share_cell(contest), "; ".join(goals), contest.verdict()]


def line(result):
    """What is said of a result while others are still measured."""
    if isinstance(result, Result):
        return "  ".join(cell for cell in pair_cells(result) if cell)
    medians = (f"{name} {show(statistics.median(result.counted(name)), result.unit)}" for name in result.figures)
    return f"{result.what}: {', '.join(medians)}"


def tables(results, not_measured=()):
    """The Markdown tables of all results: contests among the same, one of pairs, each in their order, then the notes."""
    contests = [result for result in results if isinstance(result, Contest)]
    pairs = [result for result in results if isinstance(result, Result)]
    parts = []
    for alike in among_the_same(contests):
        names = list(dict.fromkeys(name for contest in alike for name in contest.figures))
        head = ["", *names, "of the limit", "closest, goal", "met"]
        parts.append(table([head, *(contest_cells(one, names) for one in alike)]))
    if pairs:
        head = ["", "reference", "numpack", "speed, min - max", "of the limit", "goal", "met"]
        parts.append(table([head, *(pair_cells(result) for result in pairs)]))
    notes = [f"{result.what}: {result.note}" for result in results if result.note]
    # The same is absent for the same reason from many contests.
    absent = dict.fromkeys(f"{name}: not measured: {why}" for one in contests for name, why in one.absent.items())
    notes += [*absent, *(f"{missing.row}: not measured: {missing.why}" for missing in not_measured)]
    if notes:
        parts.append("\n".join(f"- {note}" for note in notes))
    return "\n\n".join(parts)


def among_the_same(contests):
    """Contests in their order, a new list where nobody takes part who did before."""
    found = []
    for contest in contests:
        if not found or not any(contest.figures.keys() & other.figures.keys() for other in found[-1]):
            found.append([])
        found[-1].append(contest)
    return found


def table(rows):
    """A Markdown table of rows of cells, the first of which is its head. Columns with nothing in them are left out."""
    columns = [column for i, column in enumerate(zip(*rows, strict=True)) if i == 0 or any(set(column[1:]) - {"", "-"})]
    rows = list(zip(*columns, strict=True))
    widths = [max(map(len, column)) for column in columns]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def machine(directory):
    """What a reader must know of the machine to judge the figures."""
    import numpy

    model = "unknown processor"
    for entry in Path("/proc/cpuinfo").read_text().splitlines():
        if entry.startswith("model name"):
            model = entry.split(":", 1)[1].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30, 1),
        "kernel": platform.release(),
        "file_system": file_system(directory),
        "python": platform.python_version(),
        "numpy": numpy.__version__,
    }


def file_system(path):
    """The type of the file system that holds ``path``, from the longest mount point above it."""
    path = os.path.realpath(path)
    best, kind = "", "unknown"
    for entry in Path("/proc/self/mounts").read_text().splitlines():
        _, point, found, *_ = entry.split(" ")
        point = point.encode().decode("unicode_escape")
        if os.path.commonpath([path, point]) == point and len(point) >= len(best):
            best, kind = point, found
    return kind


def write_json(path, facts, results, not_measured):
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "machine": facts,
        "results": [result.to_json() for result in results],
        "not_measured": [{"row": missing.row, "why": missing.why} for missing in not_measured],
    }
    path.write_text(json.dumps(document, indent=1) + "\n")
