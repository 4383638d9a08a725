"""How the benchmark measures and reports; it knows nothing of numpack.

A row compares two ways of doing the same thing. In every round both are run on the same data, in an order that
alternates from round to round, and the ratio is taken within the round: what the machine does meanwhile hits both.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


class WrongResult(Exception):
    """A timed operation did not do what it was timed for."""


def expect(condition, what):
    """Checks a result, outside the timed part. Holds with ``python -O`` too, unlike ``assert``."""
    if not condition:
        raise WrongResult(what)


def timed(work):
    """Runs ``work()`` and returns the seconds it took and what it returned. The garbage collector is off meanwhile."""
    gc.collect()
    gc.disable()
    try:
        begin = time.perf_counter_ns()
        value = work()
        return (time.perf_counter_ns() - begin) / 1e9, value
    finally:
        gc.enable()


def page_faults(work):
    """Runs ``work()`` and returns how many page faults it took, none of which went to a disk."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    work()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def in_turn(round_index, *steps):
    """Calls all steps; in odd rounds, in reverse order."""
    for step in steps if round_index % 2 == 0 else reversed(steps):
        step()


@dataclass(frozen=True)
class Goal:
    """What a row is measured against: the speed relative to the reference, or a bound on the figure itself."""

    least_ratio: float | None = None
    most: float | None = None

    def text(self, unit):
        if self.least_ratio is not None:
            return f"at least {self.least_ratio:g}x"
        return f"under {show(self.most, unit)}"

    def met(self, result):
        if self.least_ratio is not None:
            # Compared as shown: 0.9500001 is not better than 0.95.
            return round(statistics.median(result.ratios()), 2) >= self.least_ratio
        return statistics.median(result.ours) < self.most


@dataclass
class Result:
    """The samples of one row: one figure per round for us, and one for the reference if there is one."""

    row: str
    what: str
    ours: list[float] = field(default_factory=list)
    reference: list[float] = field(default_factory=list)
    reference_name: str = ""
    goal: Goal | None = None
    unit: str = "s"
    note: str = ""

    def ratios(self):
        """Speed relative to the reference, round by round: 2.0 is twice as fast, 0.5 takes twice as long."""
        return [theirs / ours for ours, theirs in zip(self.ours, self.reference, strict=True)]

    def verdict(self):
        if self.goal is None:
            return "-"
        return "yes" if self.goal.met(self) else "NO"

    def to_json(self):
        record = {
            "row": self.row,
            "what": self.what,
            "unit": self.unit,
            "ours": self.ours,
            "ours_median": statistics.median(self.ours),
            "note": self.note,
        }
        if self.reference:
            record |= {
                "reference_name": self.reference_name,
                "reference": self.reference,
                "reference_median": statistics.median(self.reference),
                "ratios": self.ratios(),
                "ratio_median": statistics.median(self.ratios()),
            }
        if self.goal is not None:
            record |= {"goal": self.goal.text(self.unit), "goal_met": self.goal.met(self)}
        return record


@dataclass(frozen=True)
class Row:
    """One or more results that are measured together. ``measure`` takes the world and this row."""

    name: str
    measure: Callable


@dataclass(frozen=True)
class NotMeasured:
    row: str
    why: str


def show(figure, unit):
    """A figure with three digits and the unit that fits."""
    if unit != "s":
        return f"{figure:.3g} {unit}"
    for scale, name in ((1, "s"), (1e-3, "ms"), (1e-6, "us")):
        if figure >= scale:
            break
    return f"{figure / scale:.3g} {name}" if figure / scale < 100 else f"{figure / scale:.0f} {name}"


def show_spread(figures, unit):
    return f"{show(statistics.median(figures), unit)} ({show(min(figures), unit)} - {show(max(figures), unit)})"


def line(result):
    """One row of the table, as its cells."""
    if result.reference:
        ratios = result.ratios()
        reference = f"{result.reference_name} {show(statistics.median(result.reference), result.unit)}"
        ratio = f"{statistics.median(ratios):.2f}x ({min(ratios):.2f} - {max(ratios):.2f})"
        ours = show(statistics.median(result.ours), result.unit)
    else:
        reference, ratio = "", ""
        ours = show_spread(result.ours, result.unit)
    goal = result.goal.text(result.unit) if result.goal else ""
    return [result.what, reference, ours, ratio, goal, result.verdict()]


def table(results, not_measured=()):
    """The Markdown table of all results, in their order."""
    cells = [["", "reference", "numpack", "speed, min - max", "goal", "met"]]
    cells += [line(result) for result in results]
    cells += [[missing.row, "", "not measured: " + missing.why, "", "", ""] for missing in not_measured]
    widths = [max(len(row[i]) for row in cells) for i in range(6)]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    notes = [f"- {result.what}: {result.note}" for result in results if result.note]
    return "\n".join(lines) + ("\n\n" + "\n".join(notes) if notes else "")


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


def progress(text):
    print(text, file=sys.stderr, flush=True)
