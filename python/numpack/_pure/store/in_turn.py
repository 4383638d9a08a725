"""Saving more arrays in one commit than a process should have files open for: one after the other.

Files without a name are there only while they are open. So these get their names at once, with the writers' lock held and
the intent written: should this process die, whoever comes next removes them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from numpack._pure.store import writer
from numpack._pure.store.writer import Commit, Staged

if TYPE_CHECKING:
    from numpack._pure.store.store import Store

# New versions that are written before the writers' lock is taken, each in an open file. The usual limit is 1024.
MAX_UNNAMED = 200


def save_in_turn(store: Store, commit: Commit, stages: dict[str, Callable[[], Staged]]) -> None:
    """Let each of ``stages`` write its array, and commit them between the operations of ``commit``, with the writers' lock
    held."""
    commit.time = time.time_ns()
    places, superseded = writer.find_places(store, list(stages), commit.ops)
    writer.begin_intent(store, places, superseded)
    # Until it is known how this ends, the intent is for the next writer to finish.
    store.is_swept = False
    try:
        for place, stage in zip(places, stages.values(), strict=True):
            with Commit([stage()]) as one:
                new = one.staged[0]
                if store.is_durable:
                    writer.poisoning(store, "sync", place.file, new.file.sync)
                else:
                    store.dirty.add(place.file)
                writer.link(store, new.file, place.file)
                store.names_dirty = True
                commit.ops.append({"put": place.record(new, commit.time)})
                new.file.close()
        commit.begun = superseded
        writer.commit(store, commit)
    except OSError:
        # Else nobody knows what is on the disk.
        if store.poison is None:
            writer.end_intent(store, [place.file for place in places])
        raise
