"""Measures numpack and npkfs against NumPy, the disk file system, and what else people use.

Prints Markdown tables, and writes them, all samples and a plot to ``target/bench/``. Rows are in sets, each with a table
of its own: ``--help`` names them, and ``make bench-SET`` measures one. ``all`` is all sets, ``--quick`` little of everything.
To choose rows of a set: ``make bench BENCH="--only 'passthrough|native/load'"``. See ``harness.py`` for how a row is
measured, and ``limits.py`` for what it could reach at best.
"""

import argparse
import re
import sys
import time
import traceback
from dataclasses import dataclass, replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import api_rows  # noqa: E402
import cold_rows  # noqa: E402
import folder_rows  # noqa: E402
import growth_rows  # noqa: E402
import harness  # noqa: E402
import limits  # noqa: E402
import memory_rows  # noqa: E402
import mount_rows  # noqa: E402
import mounts  # noqa: E402
import native_rows  # noqa: E402
import peers  # noqa: E402
import plain_peers  # noqa: E402
import plots  # noqa: E402
import report  # noqa: E402
from world import Scale, World  # noqa: E402

README = HERE.parent / "README.md"
PLOTS = HERE / "plots"


@dataclass(frozen=True)
class Set:
    """Rows that are measured and shown together. Their place in the README is between marks with ``mark``."""

    rows: list
    mark: str
    of_what: str
    rounds: int
    mib: int = 256
    quick_mib: int = 32
    quick_rounds: int = 2
    size: str = ""  # of the arrays, where that is not a number of MiB

    def scale(self, chosen):
        scale = Scale(self.mib, self.rounds)
        if chosen.quick:
            scale = scale.quick(self.quick_mib, self.quick_rounds)
        return replace(scale, rounds=chosen.rounds or scale.rounds)


TABLES = "1,000,000 and 10,000,000 rows of 10"

SETS = {
    "limits": Set(limits.ROWS, "bench-limits", "and what this machine can do at best", rounds=15, quick_mib=16),
    "table": Set(api_rows.TABLE_ROWS, "bench-table", "float32", rounds=15, size="1,000,000 rows of 10", quick_rounds=1),
    "plain": Set(mount_rows.ROWS + native_rows.ROWS, "bench", "float32", rounds=15),
    "peers": Set(plain_peers.ROWS, "bench-peers", "float32, not compressed", rounds=7, quick_mib=16),
    "growth": Set(growth_rows.ROWS, "bench-growth", "", rounds=7, size="10 to 100,000 arrays, 1 to 100 GB"),
    "memory": Set(memory_rows.ROWS, "bench-memory", "float32", rounds=3, quick_mib=16, quick_rounds=1),
    "cold": Set(cold_rows.ROWS, "bench-cold", "and 10,000 tiny arrays", rounds=5, quick_mib=16),
    "compressed": Set(peers.ROWS, "bench-compressed", "of each kind of data", rounds=7, quick_mib=8),
    "mounted": Set(mounts.ROWS, "bench-mounted", "of each kind of data", rounds=7, quick_mib=16),
    "folder": Set(folder_rows.ROWS, "bench-folder", "float32", rounds=9),
    "api": Set(api_rows.ROWS, "bench-api", "float32", rounds=9, size=TABLES),
    "python": Set(api_rows.PYTHON_ROWS, "bench-python", "float32, Python backend", rounds=5, size=TABLES, quick_rounds=1),
}


def options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("set", nargs="?", choices=["all", *SETS], default="plain", help="which rows (default: plain)")
    parser.add_argument("--only", metavar="REGEX", default="", help="rows whose name matches (default: all of the set)")
    parser.add_argument("--list", action="store_true", help="print the rows' names and stop")
    parser.add_argument("--quick", action="store_true", help="little data, 2 rounds, 1,000 arrays: to see that all works, not for figures")
    parser.add_argument("--rounds", type=int, help="rounds per row (default: 3 to 15, by set; quick: 2)")
    parser.add_argument("--dir", type=Path, default=HERE.parent / "target" / "bench", help="where files are made; must be on a disk file system (default: target/bench)")
    parser.add_argument("--readme", action="store_true", help="put the tables into README.md")
    parser.add_argument("--check", action="store_true", help="exit code 1 when a goal is missed")
    return parser.parse_args()


def main():
    chosen = options()
    names = list(SETS) if chosen.set == "all" else [chosen.set]
    failed = [name for name in names if not run(name, chosen)]
    if len(names) > 1 and failed:
        harness.progress(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


def run(name, chosen):
    """Measures a set and says what was found. Whether nothing went wrong."""
    rows_of = SETS[name]
    rows = [row for row in rows_of.rows if re.search(chosen.only, row.name) and not (chosen.quick and row.is_variant)]
    if chosen.list:
        print("\n".join(row.name for row in rows))
        return True
    scale = rows_of.scale(chosen)
    results, not_measured, broken, begin = [], [], False, time.monotonic()
    with World(chosen.dir, scale) as world:
        command = " ".join(["bench.py", *sys.argv[1:]])
        facts = report.machine(world.root) | {"mib": scale.mib, "rounds": scale.rounds, "command": command}
        if facts["file_system"] in ("tmpfs", "ramfs"):
            sys.exit(f"bench: {world.root} is on {facts['file_system']}; choose a disk file system with --dir")
        for row in rows:
            harness.progress(f"{row.name}")
            try:
                measured = row.measure(world, row)
            except harness.CannotMeasure as error:
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
                harness.progress("  " + report.line(result))
    harness.progress(f"{name}: {time.monotonic() - begin:.0f} s")
    text = f"{heading(rows_of, facts)}\n\n{report.tables(results, not_measured)}"
    print(text)
    chosen.dir.joinpath(f"{name}.md").write_text(text + "\n")
    report.write_json(chosen.dir / f"{name}.json", facts, results, not_measured)
    plot = plots.write(PLOTS if chosen.readme else chosen.dir, name, results)
    if chosen.readme:
        shown = f"![{name}]({plot.relative_to(README.parent)})\n\n" if plot else ""
        put_into_readme(rows_of.mark, shown + text)
    missed = any(result.missed() for result in results)
    return not (broken or (chosen.check and missed))


def heading(rows_of, facts):
    size = rows_of.size or f"{facts['mib']} MiB"
    return (
        f"{' '.join(filter(None, (size, rows_of.of_what)))}, {facts['rounds']} rounds, median; speed is the other's time divided by ours, "
        f"taken round by round.\n{facts['processor']}, {facts['cores']} cores, {facts['memory_gib']} GiB, "
        f"Linux {facts['kernel']}, {facts['file_system']}, Python {facts['python']}, NumPy {facts['numpy']}."
    )


def put_into_readme(mark, text):
    readme = README.read_text()
    opening = f"<!-- {mark}: begin -->\n"
    begin, end = readme.index(opening), readme.index(f"<!-- {mark}: end -->\n")
    README.write_text(readme[: begin + len(opening)] + "\n" + text + "\n\n" + readme[end:])


if __name__ == "__main__":
    sys.exit(main())
