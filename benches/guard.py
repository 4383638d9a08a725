"""Guards the core operations against getting slower: counts the instructions of each, and compares with what is stored.

    python benches/guard.py [--accept] [PROGRAM]

Instructions do not depend on what else the machine does, so a change of a few percent is seen, also in continuous
integration. callgrind counts what `guard.rs` does between two points, without the kernel's share. The stored figures,
in ``benches/guard.json``, are of x86-64 with AVX2: elsewhere other code runs, and nothing is compared (exit code 77).
"""

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
FIGURES = HERE / "guard.json"
# As `cargo test` builds it. To optimise it takes 100 s of processor time more, for what the tests depend on is built
# anew, and numpack with it. What is seen in this build is work that is added: passes, copies, allocations, lookups; what
# is not is work that the optimiser no longer removes. zstd and crc32 are optimised in it as well.
PROGRAM = HERE.parent / "target" / "debug" / "examples" / "guard"
# What another release of the compiler or of the C library may change. A figure repeats to a tenth of a percent.
TOLERANCE = 0.05
NOT_RUN = 77
COUNTED = "guard::counted"


def options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", nargs="?", type=Path, default=PROGRAM, help="(default: target/debug/examples/guard)")
    parser.add_argument("--accept", action="store_true", help="store what is counted now; commit the file with the reason")
    return parser.parse_args()


def not_run(why):
    print(why)
    sys.exit(NOT_RUN)


def count(program, operation, prepared, scratch):
    """Instructions of one operation, in a copy of the store, for it may change it."""
    store = scratch / f"{operation}.npk"
    shutil.copytree(prepared, store)
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", f"--toggle-collect={COUNTED}*"]
    done = subprocess.run([*command, program, "run", operation, store], capture_output=True, text=True)
    shutil.rmtree(store)
    found = re.search(r"^==\d+== Collected : (\d+)$", done.stderr, re.MULTILINE)
    if done.returncode != 0 or found is None:
        sys.exit(f"guard: {operation} failed under valgrind:\n{done.stderr}")
    if int(found[1]) == 0:
        sys.exit(f"guard: callgrind did not find {COUNTED} in {program}; it needs debug = \"line-tables-only\" at least")
    return int(found[1])


def counts(program):
    with tempfile.TemporaryDirectory(dir=program.parent) as folder:
        scratch = Path(folder)
        prepared = scratch / "prepared.npk"
        subprocess.run([program, "prepare", prepared], check=True)
        operations = subprocess.run([program, "list"], check=True, capture_output=True, text=True).stdout.split()
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            found = pool.map(lambda operation: count(program, operation, prepared, scratch), operations)
            return dict(zip(operations, found, strict=True))


def main():
    chosen = options()
    if platform.machine() != "x86_64" or not re.search(r"^flags.* avx2\b", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
        not_run("the stored instruction counts are of x86-64 with AVX2")
    if shutil.which("valgrind") is None:
        not_run("no valgrind here; sh .ci/setup.sh checks installs it")
    if not chosen.program.exists():
        sys.exit(f"guard: {chosen.program} is missing; run: cargo build --example guard")
    found = counts(chosen.program)
    if chosen.accept:
        FIGURES.write_text(json.dumps(found, indent=1) + "\n")
        print(f"stored in {FIGURES.relative_to(HERE.parent)}; commit it with the reason")
        return 0
    return compare(json.loads(FIGURES.read_text()), found)


def compare(stored, found):
    slower, faster = [], []
    print(f"{'operation':16} {'stored':>12} {'now':>12} instructions")
    for operation in [*found, *(stored.keys() - found.keys())]:
        before, now = stored.get(operation), found.get(operation)
        if before is None or now is None:
            print(f"{operation:16} {before or '-':>12} {now or '-':>12}")
            slower.append(f"{operation} is {'new' if before is None else 'gone'}")
            continue
        change = now / before - 1
        print(f"{operation:16} {before:12,} {now:12,} {change:+.1%}")
        if abs(change) > TOLERANCE:
            (slower if change > 0 else faster).append(f"{operation} went from {before:,} to {now:,} instructions, {change:+.1%}")
    for line in faster:
        print(f"guard: {line}: better; store it, so that it is kept: make guard-accept")
    for line in slower:
        print(f"guard: {line} (allowed: {TOLERANCE:+.0%})")
    if slower:
        print("guard: if that is meant, store the new figures: make guard-accept; commit benches/guard.json with the reason")
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
