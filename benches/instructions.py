"""What operations of the API cost in instructions, of our native code alone: a guard against what noise would hide.

    python benches/instructions.py            counts, and compares with instructions.json
    python benches/instructions.py --accept   counts, and writes that down

One process under callgrind loads everything, and forks for each operation: once to do it n times, once to do it 2n
times. The difference is n times the operation, and nothing else. Only instructions of the extension module count, which
is what `make build` made, optimised: the same on every machine, for one version of Rust, to about a thousandth.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from numpack import NumPack

BASELINE = Path(__file__).with_name("instructions.json")
TOLERANCE = 0.05
CANNOT_RUN = 77  # the exit code of test programs for that
ROWS = np.ones((100, 10), np.float32)
PICKED = np.random.default_rng(0).integers(0, 20_000, 100)


def smooth(n_rows):
    """Values that compress as measured ones do."""
    noise = np.random.default_rng(1).integers(-8, 8, (n_rows, 10))
    return (np.add.outer(np.arange(n_rows), np.arange(10)) * 16 + noise).astype(np.int32)


def make_stores(folder):
    with NumPack(folder / "one.npk") as npk:
        npk.save({"a": np.zeros((20_000, 10), np.float32)})
        npk.save({"packed": smooth(20_000)}, compress=True)
    with NumPack(folder / "snapshot.npk") as npk:
        npk.save({f"array{i}": ROWS for i in range(1000)})
        # As many appends as it takes to have a snapshot made, which is shorter than the log.
        manifest = folder / "snapshot.npk/metadata.npkm"
        length = 0
        while manifest.stat().st_size >= length:
            length = manifest.stat().st_size
            npk.append({"array0": ROWS[:1]})
    with NumPack(folder / "log.npk") as npk:
        for i in range(1000):
            npk.save({f"array{i}": ROWS})


def open_and_close(path):
    def once():
        npk = NumPack(path)
        npk.open()
        npk.has_array("array77")
        npk.close()

    return once


def operations(folder):
    """Name: how often, and what."""
    one = NumPack(folder / "one.npk")
    one.open()
    lazy, packed = one.load("a", lazy=True), one.load("packed", lazy=True)
    changed = smooth(20_000)
    return {
        "open, find one of 1,000 arrays, close; snapshot": (10, open_and_close(folder / "snapshot.npk")),
        "open, find one of 1,000 arrays, close; log": (10, open_and_close(folder / "log.npk")),
        "load(lazy=True)": (200, lambda: one.load("a", lazy=True)),
        "one row of a lazy array": (200, lambda: lazy[77]),
        "getitem of 100 rows": (100, lambda: one.getitem("a", PICKED)),
        "load of 800 KB": (20, lambda: one.load("a")),
        "append of 100 rows": (100, lambda: one.append({"a": ROWS})),
        "replace of 100 rows": (100, lambda: one.replace({"a": ROWS}, slice(0, 100))),
        "save of 4 KB": (20, lambda: one.save({"b": ROWS})),
        "compressed: load of 800 KB": (3, lambda: one.load("packed")),
        "compressed: 100 rows of a lazy array": (3, lambda: packed[PICKED]),
        "compressed: save of 800 KB": (2, lambda: one.save({"c": changed}, compress=True)),
    }


def count(folder):
    """Under callgrind: prints the process of each operation and number of times."""
    for name, (times, once) in operations(folder).items():
        for n in (times, 2 * times):
            child = os.fork()
            if child == 0:
                for _ in range(n):
                    once()
                os._exit(0)
            if os.waitpid(child, 0)[1] != 0:
                raise AssertionError(f"{name} failed under callgrind")
            print(json.dumps([name, n, child]), flush=True)


def own_instructions(profile):
    """Instructions of the extension module in a file of callgrind's."""
    names, is_ours, is_call, total = {}, False, False, 0
    with profile.open() as lines:
        for line in lines:
            if line.startswith("ob="):
                number, name = re.fullmatch(r"ob=(\(\d+\))(?: (.*))?", line.rstrip("\n")).groups()
                names.setdefault(number, name)
                is_ours = "/numpack/_native" in names[number]
            elif line.startswith("cob="):
                number, name = re.fullmatch(r"cob=(\(\d+\))(?: (.*))?", line.rstrip("\n")).groups()
                names.setdefault(number, name)
            elif line.startswith("calls="):
                # What follows is the callee's, and counted there.
                is_call = True
            elif line[0] in "0123456789+-*":
                if is_ours and not is_call:
                    total += int(line.split()[1])
                is_call = False
    return total


def measure():
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        make_stores(folder)
        command = ["valgrind", "--quiet", "--tool=callgrind", f"--callgrind-out-file={folder}/%p", sys.executable]
        environment = {**os.environ, "PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1"}
        run = subprocess.run(
            [*command, __file__, "--count", folder], env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
        runs = [json.loads(line) for line in run.stdout.splitlines()]
        counts = {(name, n): own_instructions(folder / str(process)) for name, n, process in runs}
        return {name: (counts[name, 2 * n] - counts[name, n]) // n for name, n in counts if (name, 2 * n) in counts}


def compare(now, before):
    """Prints all of it. Returns the operations that cost more."""
    print(f"{'operation':<50} {'before':>12} {'now':>12}")
    worse = []
    for name, count in now.items():
        was = before.get(name)
        change = "new" if was is None else f"{count / was - 1:+.1%}"
        print(f"{name:<50} {'' if was is None else f'{was:,}':>12} {count:>12,} {change}")
        if was is None or count > was * (1 + TOLERANCE):
            worse.append(name)
    return worse


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--accept", action="store_true", help="write down what is counted")
    parser.add_argument("--count", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.count:
        return count(args.count)
    if shutil.which("valgrind") is None:
        print("valgrind is not installed; sh .ci/setup.sh proofs installs it")
        return CANNOT_RUN
    rust = subprocess.run(["rustc", "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
    baseline = json.loads(BASELINE.read_text()) if BASELINE.exists() else {"rust": rust, "instructions": {}}
    if baseline["rust"] != rust and not args.accept:
        print(f"{BASELINE.name} is of Rust {baseline['rust']}, this is {rust}; --accept writes it down anew")
        return CANNOT_RUN
    now = measure()
    worse = compare(now, baseline["instructions"])
    if args.accept:
        BASELINE.write_text(json.dumps({"rust": rust, "instructions": now}, indent=2) + "\n")
        return 0
    if worse:
        print(f"more than {TOLERANCE:.0%} more instructions, or not written down: {'; '.join(worse)}")
        print("if that is meant, python benches/instructions.py --accept writes it down, for the commit to say why")
    return bool(worse)


if __name__ == "__main__":
    sys.exit(main())
