#!/bin/sh
# Runs every check, and says at the end what passed, what failed, and what could not run and why.
#
#     sh .ci/test.sh all | lint
#
# One failure does not stop the others. Exit code 0 when all that ran passed. `make test` prepares what this needs.
set -u
cd "$(dirname "$0")/.." || exit 1
bin=.venv/bin
logs=target/test-logs
mkdir -p "$logs"
: >"$logs/summary"
failed=0
viewer=
trap '[ -z "$viewer" ] || kill "$viewer"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# One line of the summary: record RESULT NAME DETAIL
record() { printf '  %-8s %-34s %s\n' "$1" "$2" "$3" >>"$logs/summary"; }

# Runs a command and keeps what it says in a log, which a second process shows meanwhile: through a pipe, a daemon
# that a test left behind would keep us waiting. check LOG NAME COMMAND...
check() {
    log=$logs/$1.log; name=$2; shift 2
    printf '\n== %s: %s\n' "$name" "$*"
    start=$(date +%s)
    : >"$log"
    tail -n +1 -f "$log" 2>/dev/null & viewer=$!
    "$@" >"$log" 2>&1 </dev/null
    status=$?
    sleep 0.2
    kill "$viewer"; wait "$viewer" 2>/dev/null; viewer=
    secs=$(($(date +%s) - start))
    if [ "$status" = 0 ]; then
        record passed "$name" "$secs s$(counts "$log")"
    elif [ "$status" = 77 ]; then
        # As it is agreed among test programs: it cannot run here, and the last line says why.
        record 'not run' "$name" "$(tail -n 1 "$log")"
    else
        failed=1
        [ "$status" = 124 ] && why='stopped: took too long' || why="exit code $status"
        record FAILED "$name" "$secs s$(counts "$log"), $why, log: $log"
    fi
    return "$status"
}

# How many tests a log of cargo test or pytest counts.
counts() {
    awk '/^test result: / { for (i = 1; i < NF; i++) { if ($(i + 1) ~ /^passed/) p += $i; if ($(i + 1) ~ /^failed/) f += $i; if ($(i + 1) ~ /^ignored/) s += $i } seen = 1; next }
         /[0-9] (passed|failed|skipped|error).* in [0-9.]+s/ { for (i = 1; i < NF; i++) { if ($(i + 1) ~ /^passed/) p += $i; if ($(i + 1) ~ /^failed/) f += $i; if ($(i + 1) ~ /^skipped/) s += $i } seen = 1 }
         END { if (seen) { printf ", %d passed", p; if (f) printf ", %d failed", f; if (s) printf ", %d not run", s } }' "$1"
}

# A hung mount must not hang the run: limit SECS COMMAND...
# shellcheck disable=SC2329 # called through check
limit() { if command -v timeout >/dev/null 2>&1; then timeout --kill-after=10 "$@"; else shift; "$@"; fi; }

lint() {
    if cargo fmt --version >/dev/null 2>&1; then
        check fmt 'formatting' cargo fmt --check
    else
        record 'not run' 'formatting' 'no rustfmt here; rustup component add rustfmt'
    fi
    if cargo clippy --version >/dev/null 2>&1; then clippy; else
        record 'not run' 'clippy' 'no clippy here; rustup component add clippy'
    fi
    check mypy 'types of the Python code' "$bin/python" -m mypy
    check doc 'Rust documentation' env RUSTDOCFLAGS='-D warnings -A rustdoc::private-intra-doc-links' cargo doc --quiet --no-deps --document-private-items
    scripts
}

clippy() {
    check clippy-none 'clippy, no feature' cargo clippy --quiet --all-targets --no-default-features -- -D warnings
    check clippy-fuse 'clippy, fuse' cargo clippy --quiet --all-targets --no-default-features --features fuse -- -D warnings
    check clippy-python 'clippy, python' cargo clippy --quiet --all-targets --no-default-features --features python -- -D warnings
    check clippy-shuttle 'clippy, shuttle' cargo clippy --quiet --features shuttle --lib --test interleavings -- -D warnings
    check clippy-both 'clippy, fuse and python' cargo clippy --quiet --all-targets --features fuse,python -- -D warnings
}

scripts() {
    if [ -x "$bin/shellcheck" ]; then shellcheck=$bin/shellcheck; else shellcheck=$(command -v shellcheck); fi
    if [ -n "$shellcheck" ]; then
        # All scripts: by name, and those that only their first line names.
        find .ci mount-scripts tests -type f 2>/dev/null | sort | while IFS= read -r file; do
            case $file in
                *.sh) printf '%s\n' "$file" ;;
                *) head -n 1 "$file" 2>/dev/null | grep -qaE '^#!.*[/ ](ba)?sh\b' && printf '%s\n' "$file" ;;
            esac
        done >"$logs/scripts"
        check shellcheck 'ShellCheck' xargs -d '\n' -a "$logs/scripts" "$shellcheck"
    else
        record 'not run' 'ShellCheck' 'no shellcheck here; apt-get install shellcheck'
    fi
}

tests() {
    check cargo-test 'Rust tests' limit 1500 cargo test --no-fail-fast -- --show-output
    # With the program that the tests were built with.
    check guard 'instruction counts' limit 300 "$bin/python" benches/guard.py
    check interleavings 'orders of processes' limit 600 cargo test --features shuttle --test interleavings -- --show-output
    if check build 'build and install' make --no-print-directory build; then
        check stubtest 'type stubs' "$bin/python" -m mypy.stubtest --mypy-config-file pyproject.toml --concise numpack
        for backend in rust python; do
            check "pytest-$backend" "Python tests, backend $backend" \
                limit 900 env NUMPACK_BACKEND="$backend" "$bin/python" -m pytest -rs tests/python
        done
        # Programs that nobody here wrote.
        for program in fsx fio pjdfstest stress-ng numpy; do
            check "proof-$program" "$program on mounts" limit 900 "$bin/python" tests/proofs "$program"
        done
    else
        record 'not run' 'type stubs' 'the build failed'
        record 'not run' 'Python tests' 'the build failed'
        record 'not run' 'programs on mounts' 'the build failed'
    fi
    # What was tried, as the tests say themselves.
    sed -n 's/^covered: \([0-9][0-9]*\) \(.*\)$/\1 \2/p' "$logs/cargo-test.log" "$logs/interleavings.log" \
        "$logs"/pytest-*.log "$logs"/proof-*.log 2>/dev/null |
        awk '{ n = $1; sub(/^[0-9]+ /, ""); total[$0] += n } END { for (what in total) print total[what], what }' |
        sort -k 2 >"$logs/covered"
    while read -r n what; do record covered "$n" "$what"; done <"$logs/covered"
    # Tests that had to leave something out say so themselves.
    sed -nE 's/^.*SKIPPED:? (\[[0-9]+\] )?//p' "$logs/cargo-test.log" "$logs"/pytest-*.log "$logs"/proof-*.log 2>/dev/null |
        sort | uniq -c >"$logs/skipped"
    while read -r n why; do record 'not run' "part of the tests, $n times" "$why"; done <"$logs/skipped"
}

# What of this machine decides whether mounts can be tested.
mounts() {
    if [ "$(uname -s)" != Linux ]; then
        record 'not run' 'mounts' 'npkfs mounts on Linux only'
    elif [ ! -e /dev/fuse ]; then
        record 'not run' 'mounts' '/dev/fuse is missing'
    elif ! (: <>/dev/fuse) 2>/dev/null; then
        record 'not run' 'mounts' 'no right to open /dev/fuse'
    elif ! command -v fusermount3 >/dev/null 2>&1; then
        record 'not run' 'mounts through fusermount3' 'fusermount3 is missing'
    fi
    [ "$(id -u)" = 0 ] || record 'not run' 'mounts with passthrough' 'only root may hand files to the kernel'
}

begin=$(date +%s)
case ${1-} in
    lint) lint ;;
    all) lint; tests; mounts ;;
    *) echo 'usage: sh .ci/test.sh all|lint' >&2; exit 2 ;;
esac
printf '\n%s in %d s:\n' "$([ "$failed" = 0 ] && echo 'All that ran passed' || echo 'FAILED')" $(($(date +%s) - begin))
cat "$logs/summary"
exit "$failed"
