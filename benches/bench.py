"""Measures numpack and npkfs against NumPy, the disk file system, and others who compress.

Prints Markdown tables, and writes them and all samples to ``target/bench/``. There are five sets of rows: `plain` is
uncompressed arrays (``make bench``), `compressed` is compressed ones through Python (``make bench-compressed``),
`mounted` is compressed ones through a mount (``make bench-mounted``), `api` is every call against NumPy by hand and
against NumPack 0.3.0 (``make bench-api``), `python` the Python backend against that of 0.3.0 (``make bench-python``).
To choose rows of a set:
``make bench BENCH="--only 'passthrough|native/load'"``. See ``harness.py`` for how a row is measured.
"""

import argparse
import re
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import api_rows  # noqa: E402
import folder_rows  # noqa: E402
import harness  # noqa: E402
import mount_rows  # noqa: E402
import mounts  # noqa: E402
import native_rows  # noqa: E402
import peers  # noqa: E402
import report  # noqa: E402
from world import World  # noqa: E402

README = HERE.parent / "README.md"


@dataclass(frozen=True)
class Set:
    """Rows that are measured and shown together. Their place in the README is between marks with ``mark``."""

    rows: list
    mark: str
    of_what: str
    rounds: int
    quick_rounds: int = 3
    size: str = ""  # of the arrays, where that is not a number of MiB


TABLES = "1,000,000 and 10,000,000 rows of 10"

SETS = {
    "plain": Set(mount_rows.ROWS + native_rows.ROWS, "bench", "float32", rounds=15),
    "compressed": Set(peers.ROWS, "bench-compressed", "of each kind of data", rounds=7),
    "mounted": Set(mounts.ROWS, "bench-mounted", "of each kind of data", rounds=7),
    "folder": Set(folder_rows.ROWS, "bench-folder", "float32", rounds=9),
    "api": Set(api_rows.ROWS, "bench-api", "float32", rounds=9, size=TABLES),
    "python": Set(api_rows.PYTHON_ROWS, "bench-python", "float32, Python backend", rounds=5, size=TABLES),
}


def options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("set", nargs="?", choices=SETS, default="plain", help="which rows (default: plain)")
    parser.add_argument("--only", metavar="REGEX", default="", help="rows whose name matches (default: all of the set)")
    parser.add_argument("--list", action="store_true", help="print the rows' names and stop")
    parser.add_argument("--quick", action="store_true", help="64 MiB, 3 rounds, 1,000 arrays: for a first look, not for figures")
    parser.add_argument("--rounds", type=int, help="rounds per row (default: 15, of compressed arrays 7, quick: 3)")
    parser.add_argument("--dir", type=Path, default=HERE.parent / "target" / "bench", help="where files are made; must be on a disk file system (default: target/bench)")
    parser.add_argument("--readme", action="store_true", help="put the tables into README.md")
    parser.add_argument("--check", action="store_true", help="exit code 1 when a goal is missed")
    return parser.parse_args()


def main():
    chosen = options()
    rows_of = SETS[chosen.set]
    rows = [row for row in rows_of.rows if re.search(chosen.only, row.name)]
    if chosen.list:
        print("\n".join(row.name for row in rows))
        return 0
    mib, rounds, many = (64, rows_of.quick_rounds, 1000) if chosen.quick else (256, rows_of.rounds, 10_000)
    rounds = chosen.rounds or rounds
    results, not_measured, broken = [], [], False
    with World(chosen.dir, mib, rounds, many) as world:
        command = " ".join(["bench.py", *sys.argv[1:]])
        facts = report.machine(world.root) | {"mib": mib, "rounds": rounds, "command": command}
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
    text = f"{heading(rows_of, facts)}\n\n{report.tables(results, not_measured)}"
    print(text)
    chosen.dir.joinpath(f"{chosen.set}.md").write_text(text + "\n")
    report.write_json(chosen.dir / f"{chosen.set}.json", facts, results, not_measured)
    if chosen.readme:
        put_into_readme(rows_of.mark, text)
    missed = any(result.missed() for result in results)
    return 1 if broken or (chosen.check and missed) else 0


def heading(rows_of, facts):
    size = rows_of.size or f"{facts['mib']} MiB"
    return (
        f"{size} {rows_of.of_what}, {facts['rounds']} rounds, median; speed is the other's time divided by ours, "
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
