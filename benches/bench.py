"""Measures numpack and npkfs against NumPy and the disk file system.

Prints a Markdown table, and writes it and all samples to ``target/bench/``. Run it with ``make bench``, or, to choose
rows: ``make bench BENCH="--only 'passthrough|native/load'"``. See ``harness.py`` for how a row is measured.
"""

import argparse
import re
import sys
import traceback
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import harness  # noqa: E402
import mount_rows  # noqa: E402
import native_rows  # noqa: E402
from world import CannotMount, World  # noqa: E402

ROWS = mount_rows.ROWS + native_rows.ROWS
README = HERE.parent / "README.md"
MARKS = ("<!-- bench: begin -->\n", "<!-- bench: end -->\n")


def options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", metavar="REGEX", default="", help="rows whose name matches (default: all)")
    parser.add_argument("--list", action="store_true", help="print the rows' names and stop")
    parser.add_argument("--quick", action="store_true", help="64 MiB, 3 rounds, 1,000 arrays: for a first look, not for figures")
    parser.add_argument("--rounds", type=int, help="rounds per row (default: 15, quick: 3)")
    parser.add_argument("--dir", type=Path, default=HERE.parent / "target" / "bench", help="where files are made; must be on a disk file system (default: target/bench)")
    parser.add_argument("--readme", action="store_true", help="put the table into README.md")
    parser.add_argument("--check", action="store_true", help="exit code 1 when a goal is missed")
    return parser.parse_args()


def main():
    chosen = options()
    rows = [row for row in ROWS if re.search(chosen.only, row.name)]
    if chosen.list:
        print("\n".join(row.name for row in rows))
        return 0
    mib, rounds, many = (64, 3, 1000) if chosen.quick else (256, 15, 10_000)
    rounds = chosen.rounds or rounds
    results, not_measured, broken = [], [], False
    with World(chosen.dir, mib, rounds, many) as world:
        facts = harness.machine(world.root) | {"mib": mib, "rounds": rounds, "command": " ".join(["bench.py", *sys.argv[1:]])}
        if facts["file_system"] in ("tmpfs", "ramfs"):
            sys.exit(f"bench: {world.root} is on {facts['file_system']}; choose a disk file system with --dir")
        for row in rows:
            harness.progress(f"{row.name}")
            try:
                measured = row.measure(world, row)
            except CannotMount as error:
                harness.progress(f"  not measured: {error}")
                not_measured.append(harness.NotMeasured(row.name, str(error)))
                continue
            except Exception as error:
                harness.progress("".join(traceback.format_exception(error)))
                not_measured.append(harness.NotMeasured(row.name, f"{type(error).__name__}: {error}"))
                broken = True
                continue
            for result in measured:
                results.append(result)
                harness.progress("  " + "  ".join(cell for cell in harness.line(result) if cell))
    text = report(facts, results, not_measured)
    print(text)
    chosen.dir.joinpath("table.md").write_text(text + "\n")
    harness.write_json(chosen.dir / "results.json", facts, results, not_measured)
    if chosen.readme:
        put_into_readme(text)
    missed = any(result.goal is not None and not result.goal.met(result) for result in results)
    return 1 if broken or (chosen.check and missed) else 0


def report(facts, results, not_measured):
    head = (
        f"{facts['mib']} MiB float32, {facts['rounds']} rounds, median; speed is the reference's time divided by ours, taken "
        f"round by round.\n{facts['processor']}, {facts['cores']} cores, {facts['memory_gib']} GiB, Linux {facts['kernel']}, "
        f"{facts['file_system']}, Python {facts['python']}, NumPy {facts['numpy']}."
    )
    return head + "\n\n" + harness.table(results, not_measured)


def put_into_readme(text):
    readme = README.read_text()
    begin, end = (readme.index(mark) for mark in MARKS)
    README.write_text(readme[: begin + len(MARKS[0])] + "\n" + text + "\n\n" + readme[end:])


if __name__ == "__main__":
    sys.exit(main())
