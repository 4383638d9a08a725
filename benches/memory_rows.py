"""Peak memory: how much a process grows while it does one thing, once, with the large array.

Each figure is of a fresh process, which has imported everything before: the highest resident set that the kernel saw
(VmHWM) less what was resident when the work began. Pages of a mapped file count as long as they are mapped, although the
kernel can take them back at any time.
"""

from __future__ import annotations

import mmap
import subprocess
import sys
from pathlib import Path

import numpy as np

import plain_peers
from harness import Contest, Goal, Row, expect
from plain_peers import PEERS, RIVALS, Shelf

ROUNDS = 3
HERE = Path(__file__).resolve().parent
SLACK = 1.05  # of the peer that takes least: the page granularity, and what malloc keeps


# Each gives something that can be checked when the memory has been measured.


def save(peer, path, source):
    peer.save(path, source)
    return path.exists()


def load(peer, path, source):
    return peer.load(path)


def stream(peer, path, source):
    return sum(len(piece) for piece in peer.stream(path)) == len(source)


def append(peer, path, source):
    peer.append(path, np.array(source[: plain_peers.CHANGED]))
    return True


def gather(peer, path, source):
    return peer.gather(path, rows_of(source))


def rows_of(source):
    return np.random.default_rng(16).choice(len(source), plain_peers.GATHERED, replace=False)


def mapped_sum(peer, path, source):
    return np.load(path, mmap_mode="r").sum() != 0


def is_right(operation, found, source):
    if operation in ("load", "gather"):
        return np.array_equal(found, source[rows_of(source)] if operation == "gather" else source)
    return bool(found)


WORK = {
    "save": ("save", save),
    "load": ("load", load),
    "stream": (f"all of it {plain_peers.STREAMED:,} rows at a time", stream),
    "gather": (f"{plain_peers.GATHERED:,} random rows", gather),
    "append": (f"append of {plain_peers.CHANGED} rows", append),
    "sum": ("mapped `np.sum` of the file", mapped_sum),
}


def resident(field):
    for entry in Path("/proc/self/status").read_text().splitlines():
        if entry.startswith(field):
            return int(entry.split()[1]) * 1024
    raise RuntimeError(f"no {field} in /proc/self/status")


def main():
    """In the fresh process: python memory_rows.py PEER OPERATION PATH SOURCE. Prints bytes."""
    name, operation, path, source = sys.argv[1:]
    peer = next(peer for peer in PEERS if peer.name == name)()
    # Who saves has the array in memory; who checks only looks at some pages of it.
    array = np.load(source) if operation == "save" else np.load(source, mmap_mode="r")
    if operation == "append":
        array[: plain_peers.CHANGED].sum()
    begin = resident("VmRSS:")
    # The highest figure is from now on.
    Path("/proc/self/clear_refs").write_text("5")
    found = WORK[operation][1](peer, Path(path), array)
    highest = resident("VmHWM:")
    expect(is_right(operation, found, array), f"{name}: {operation} gave something else")
    # A page, where it is none: nobody divides by that.
    print(max(mmap.PAGESIZE, highest - begin))


def grown(peer_name, operation, path, source):
    command = [sys.executable, HERE / "memory_rows.py", peer_name, operation, path, source]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{peer_name}, {operation}: {done.stderr.strip().splitlines()[-1]}")
    return int(done.stdout) / 2**20


def measure(world, row):
    least = Goal(least_ratio=round(1 / SLACK, 2)), RIVALS
    with Shelf(world) as shelf:
        source = shelf.root / "source.npy"
        np.save(source, shelf.array)
        for operation, (what, _) in WORK.items():
            if operation == "sum":
                continue
            title = f"memory: {what}, of {world.mib} MiB"
            contest = Contest(f"{row.name}/{operation}", title, "numpack", [least], unit="MiB", absent=dict(shelf.absent))
            contest.figures = {name: [] for name in shelf.peers}
            for _ in range(min(world.rounds, ROUNDS)):
                for name, peer in shelf.peers.items():
                    path = shelf.root / f"memory-{name}"
                    plain_peers.remove(path)
                    if operation != "save":
                        peer.save(path, shelf.array)
                    contest.figures[name].append(grown(name, operation, path, source))
                    plain_peers.remove(path)
            yield contest


def mounted(world, row):
    """A program that maps a file of a mount, against one that maps the file on the disk."""
    contest = Contest(row.name, "memory: mapped `np.sum` of a file", "mounted", [(Goal(least_ratio=0.95), ("disk",))], unit="MiB")
    contest.figures = {"mounted": [], "disk": []}
    for _ in range(min(world.rounds, ROUNDS)):
        with world.mount("passthrough=off") as mount:
            for name, path in ("mounted", mount.path / "big.npy"), ("disk", world.backing):
                contest.figures[name].append(grown("npy", "sum", path, world.backing))
    return [contest]


ROWS = [
    Row("memory", lambda world, row: list(measure(world, row))),
    Row("memory/mounted", mounted),
]

if __name__ == "__main__":
    main()
