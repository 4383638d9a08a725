"""What several clients did to one thing at once, and whether some order of it explains what each of them saw.

The search is that of Wing and Gong: an operation may be next in the order if no other one that is left had returned
before it was called. A thing is a function ``states(state, event)`` that gives the states that there may be after an event,
and none if it cannot have returned in this state what it returned.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any

NEVER = float("inf")


@dataclass(frozen=True)
class Event:
    """One operation, as its client saw it."""

    client: int
    what: str
    # What it was given, and what it returned.
    given: Any
    seen: Any
    # When it was called, and when it returned; NEVER if the client died before: then it may have been done, also
    # later, or not.
    start: float
    end: float


States = Callable[[Any, Event], Iterable[Hashable]]


def explain(initial: Hashable, events: list[Event], states: States) -> str | None:
    """Nothing if there is such an order, or else what happened, to be read by people."""
    numbers = sorted({event.client for event in events})
    # A client does one thing at a time. A start may be earlier than it was, where what is seen may be as of before.
    clients = [sorted((e for e in events if e.client == n), key=lambda e: e.end) for n in numbers]
    seen = set()
    # Depth first, without recursion: histories are long. Where each client is, and the state.
    ways = [((0,) * len(clients), initial)]
    while ways:
        way = done, state = ways.pop()
        left = [(n, client[at]) for n, (client, at) in enumerate(zip(clients, done, strict=True)) if at < len(client)]
        first_end = min((event.end for _, event in left), default=NEVER)
        if first_end == NEVER:
            # All that is left was cut short by death, and need not have happened.
            return None
        if way in seen:
            continue
        seen.add(way)
        for n, event in left:
            if event.start <= first_end:
                after = (*done[:n], done[n] + 1, *done[n + 1 :])
                ways.extend((after, new) for new in states(state, event))
    return "\n".join(map(str, sorted(events, key=lambda event: event.end)))


def register(state: Any, event: Event) -> Iterable[Any]:
    """Something that is written and read as a whole."""
    if event.what == "write":
        return [event.given]
    return [state] if event.seen == state else []


def array(state: tuple[int, ...] | None, event: Event) -> Iterable[Any]:
    """An array of rows, each with a number that no other row ever has; None while there is none."""
    died = event.end == NEVER
    match event.what:
        case "save":
            return [event.given]
        case "append" if event.seen is None and not died:
            return [state] if state is None else []
        case "append":
            return [] if state is None else [state + event.given]
        case "append to what may be gone":
            # As on a disk: who has a file open that another one has taken the place of writes to what is gone.
            return [state, *([] if state is None else [state + event.given])]
        case "drop first":
            return [state[1:] if state else state]
        case "compact":
            return [state]
        case "remove":
            return [None]
        case "read":
            return [state] if event.seen == state else []
    raise ValueError(event.what)
