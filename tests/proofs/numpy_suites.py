"""NumPy's own tests of its file format and of np.memmap, with all their files in a mount."""

from __future__ import annotations

import re
import sys
import sysconfig

from ways import Failed, Mount, NotRun

# Of Python's own, for who may not run that of the virtual environment, but read what is in it.
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": sysconfig.get_path("purelib")}

# As modules: NumPy moved the second one in its release 2.0.
SUITES = [["numpy.lib.tests.test_format"], ["numpy._core.tests.test_memmap", "numpy.core.tests.test_memmap"]]

# Tests that fail, with the reason.
EXPECTED = {
    "test_file_truncated": "cuts a file within a row: refused with EOPNOTSUPP",
    "test_pickle_disallow": "saves an array of objects: refused at close, no pickle is ever stored",
}
# Takes longer than all others together: it writes files of 2 GiB.
SLOW = "test_large_archive"


def prepare(report, scratch):
    for test, why in EXPECTED.items():
        report.does_not_apply(f"{test}: {why}")
    if not report.long:
        print(f"left out        {SLOW}: with --long only")


def run(report, scratch, way):
    python, version = find_python(scratch, way)
    failed = set()
    for modules in SUITES:
        with Mount(scratch, way) as mount:
            settings = mount.folder / "pytest.ini"
            settings.write_text("[pytest]\n")
            environment = ENVIRONMENT | {"TMPDIR": str(mount.path)}
            for module in modules:
                command = [python, "-m", "pytest", "-q", "-c", settings, "-p", "no:cacheprovider", "--pyargs", module]
                command += ["--basetemp", mount.path / "pytest"]
                if not report.long:
                    command += ["-k", f"not {SLOW}"]
                status, said = way.run(*command, cwd=mount.folder, env=environment, seconds=600)
                if "module or package not found" not in said:
                    break
            here = set(re.findall(r"^(?:FAILED|ERROR) \S*::(\w+)", said, re.MULTILINE))
            failed |= here
            passed = re.search(r"\b(\d+) passed", said)
            if status not in (0, 1) or not here <= EXPECTED.keys() or not passed:
                raise Failed(f"{module} of NumPy {version}: exit code {status}\n{said}")
        report.passed(f"{way.name}: {passed[1]} tests of {module}, NumPy {version}")
    if passed := EXPECTED.keys() - failed:
        raise Failed(f"{', '.join(sorted(passed))} passes: take that out of EXPECTED")


def find_python(scratch, way):
    """A Python that the user of a way may run, and its NumPy."""
    for python in (sys.executable, "/usr/bin/python3"):
        try:
            status, said = way.run(python, "-c", "import numpy, pytest; print(numpy.__version__)", cwd=scratch.path, env=ENVIRONMENT)
        except OSError as error:
            status, said = 1, str(error)
        if status == 0:
            return python, said.strip()
    raise NotRun(f"NumPy's tests as {way.name}: no Python with NumPy and pytest that he may run: {said.strip()}")
