"""How the benchmark measures; it knows nothing of numpack.

A row compares two or more ways of doing the same thing. In every round all are run on the same data, in an order that
changes from round to round, and ratios are taken within the round: what the machine does meanwhile hits all.
"""

from __future__ import annotations

import gc
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field


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
    over_ratio: float | None = None
    most: float | None = None

    def text(self, unit):
        if self.least_ratio is not None:
            return f"at least {self.least_ratio:g}x"
        if self.over_ratio is not None:
            return f"over {self.over_ratio:g}x"
        return f"under {show(self.most, unit)}"

    def met(self, result):
        if self.most is not None:
            return statistics.median(result.ours) < self.most
        return self.met_by(result.ratios())

    def met_by(self, ratios):
        # Compared as shown: 0.9500001 is not better than 0.95.
        ratio = round(statistics.median(ratios), 2)
        return ratio >= self.least_ratio if self.least_ratio is not None else ratio > self.over_ratio


@dataclass(frozen=True)
class Ceiling:
    """What this machine can do at best of what a row does, measured in the same run. See `limits.py`."""

    name: str
    seconds: float

    def share(self, figures):
        """How much of it is reached: 1.0 is as fast as can be."""
        return self.seconds / statistics.median(figures)


def ceiling_json(ceiling, share):
    return {"name": ceiling.name, "seconds": ceiling.seconds, "share": share}


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
    ceiling: Ceiling | None = None

    def shared(self):
        """The ceiling, and how much of it is reached, or None."""
        return self.ceiling and (self.ceiling, self.ceiling.share(self.ours))

    def ratios(self):
        """Speed relative to the reference, round by round: 2.0 is twice as fast, 0.5 takes twice as long."""
        return [theirs / ours for ours, theirs in zip(self.ours, self.reference, strict=True)]

    def missed(self):
        return self.goal is not None and not self.goal.met(self)

    def verdict(self):
        if self.goal is None:
            return "-"
        return "NO" if self.missed() else "yes"

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
        if shared := self.shared():
            record["ceiling"] = ceiling_json(*shared)
        if self.goal is not None:
            record |= {"goal": self.goal.text(self.unit), "goal_met": self.goal.met(self)}
        return record


LONG = 2.0  # seconds
LONG_ROUNDS = 3


@dataclass
class Contest:
    """One thing that several can do: for each, one figure per round, or None for a round that it sat out."""

    row: str
    what: str
    ours: str
    goals: list[tuple[Goal, tuple[str, ...]]] = field(default_factory=list)
    unit: str = "s"
    note: str = ""
    figures: dict[str, list[float | None]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    limit: Goal | None = None  # on our own figure, besides the goals against rivals
    ceiling: Ceiling | None = None
    bounded_by: str = ""  # or the contender that is the ceiling

    def play(self, rounds, contenders):
        """Lets all ``contenders``, by name the function that returns a figure, do it once in every round.

        Each does it once before. Who needs more than ``LONG`` for it takes part in ``LONG_ROUNDS`` rounds only, of
        which that is the first. The order is another one in each round: who comes next pays for what the one before
        left behind, such as memory that the machine has to be given again.
        """
        self.figures = {name: [] for name in contenders}
        long = {name: figure for name, contender in contenders.items() if (figure := contender()) > LONG}
        for i in range(rounds):
            for name in random.Random(i).sample(list(contenders), len(contenders)):
                if name in long:
                    figure = long[name] if i == 0 else contenders[name]() if i < LONG_ROUNDS else None
                else:
                    figure = contenders[name]()
                self.figures[name].append(figure)
        return self

    def shared(self):
        """The ceiling, and how much of it is reached, or None."""
        if self.ours not in self.figures:
            return None
        if self.bounded_by in self.figures:
            name, seconds = self.bounded_by, statistics.median(self.counted(self.bounded_by))
            ceiling = Ceiling(name, seconds)
        else:
            ceiling = self.ceiling
        return ceiling and (ceiling, ceiling.share(self.counted(self.ours)))

    def counted(self, name):
        return [figure for figure in self.figures[name] if figure is not None]

    def ratios(self, rival):
        """Speed relative to a rival, in the rounds in which both took part: 2.0 is twice as fast."""
        rounds = zip(self.figures[self.ours], self.figures[rival], strict=True)
        return [theirs / ours for ours, theirs in rounds if ours is not None and theirs is not None]

    def closest(self, rivals):
        """Of these rivals the one that comes closest to us, or is farthest ahead; None if none took part."""
        there = [rival for rival in rivals if rival in self.figures]
        if self.ours not in self.figures or not there:
            return None
        return min(there, key=lambda rival: statistics.median(self.ratios(rival)))

    def judged(self):
        """The goals that can be judged, each with the rival that decides."""
        return [(goal, rival) for goal, rivals in self.goals if (rival := self.closest(rivals))]

    def is_over_limit(self):
        return self.limit is not None and statistics.median(self.counted(self.ours)) >= self.limit.most

    def missed(self):
        return self.is_over_limit() or any(not goal.met_by(self.ratios(rival)) for goal, rival in self.judged())

    def verdict(self):
        if self.limit is None and not self.judged():
            return "-"
        return "NO" if self.missed() else "yes"

    def to_json(self):
        return {
            "row": self.row,
            "what": self.what,
            "unit": self.unit,
            "ours": self.ours,
            "figures": self.figures,
            "medians": {name: statistics.median(self.counted(name)) for name in self.figures},
            "absent": self.absent,
            "note": self.note,
            "limit": self.limit and self.limit.text(self.unit),
            "limit_met": self.limit and not self.is_over_limit(),
            "ceiling": (shared := self.shared()) and ceiling_json(*shared),
            "goals": [
                {
                    "goal": goal.text(self.unit),
                    "rival": rival,
                    "ratio_median": statistics.median(self.ratios(rival)),
                    "goal_met": goal.met_by(self.ratios(rival)),
                }
                for goal, rival in self.judged()
            ],
        }


@dataclass(frozen=True)
class Row:
    """One or more results that are measured together. ``measure`` takes the world and this row."""

    name: str
    measure: Callable
    is_variant: bool = False  # the same as another row with other data: not for a quick look


class CannotMeasure(Exception):
    """This machine lacks what a row, or one of the contenders in it, needs. Says what."""


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


def progress(text):
    print(text, file=sys.stderr, flush=True)
