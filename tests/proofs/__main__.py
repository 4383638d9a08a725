"""Lets programs that nobody here wrote loose on mounted stores: python tests/proofs PROGRAM [--long].

Each program is run on mounts of root, with and without passthrough, and on one of the user nobody. What was covered is
printed line by line, and so is, with the reason, what does not apply to npkfs. Exit code 1 if a program found a fault, if
a mount did not survive it, or if the store has damage afterwards; 77 if the program cannot be run here, of which the
last line says why. `sh .ci/setup.sh proofs` installs the programs.
"""

import argparse
import importlib
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from ways import Failed, NotRun, Report, Scratch, ways  # noqa: E402

# The modules, by the names of what they run.
PROGRAMS = {"fsx": "fsx", "fio": "fio", "pjdfstest": "pjdfstest", "stress-ng": "stress", "numpy": "numpy_suites"}
CANNOT_RUN = 77


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", choices=PROGRAMS)
    parser.add_argument("--long", action="store_true", help="for longer, with other seeds (default: about half a minute)")
    chosen = parser.parse_args()
    # Mounts are taken away on the way out, also when somebody loses patience.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    begin = time.monotonic()
    report = Report(chosen.long)
    try:
        program = importlib.import_module(PROGRAMS[chosen.program])
        with Scratch() as scratch:
            program.prepare(report, scratch)
            here, others = ways(scratch)
            for way in here:
                try:
                    program.run(report, scratch, way)
                except NotRun as missing:
                    report.skip(missing)
                except Failed as failed:
                    report.fail(f"{way.name}: {failed}")
            for why in others:
                report.skip(why)
    except NotRun as missing:
        report.last_reason = missing
    if report.has_done_nothing():
        print(report.last_reason)
        return CANNOT_RUN
    print(report.total(time.monotonic() - begin))
    return 1 if report.n_failed else 0


if __name__ == "__main__":
    sys.exit(main())
