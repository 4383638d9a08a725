#!/bin/sh
# Runs what looks for lost data over and over, each time with other random numbers, until the time is over or something
# is found; says at the end how much was covered.
#
#     sh .ci/torture.sh MINUTES
#
# Exit code 0 when nothing was found. A failed test says in its log which NUMPACK_TEST_SEED brings it back.
set -u
cd "$(dirname "$0")/.." || exit 1
minutes=${1:-10}
case $minutes in '' | *[!0-9]*) echo 'usage: sh .ci/torture.sh MINUTES' >&2; exit 2 ;; esac
bin=.venv/bin
logs=target/torture-logs
rm -rf "$logs"
mkdir -p "$logs"
end=$(($(date +%s) + minutes * 60))

# What is run in turn, and how many random cases of each: a turn of each takes about a minute.
# crash: cut points of operations through a store and through a mount, with and without a loss of power; failing calls.
# repair: random damage, repairs that die. corrupt, fuzz: hostile bytes. kill, kill_mount: real processes, really killed.
# model: random operations against the model. concurrent, regions: readers and writers at once. interleavings: processes
# and threads in orders that a model checker chooses.
tests='interleavings:1500 crash:12 repair:150 kill:150 kill_mount:100 corrupt:6000 fuzz:600 model:60 concurrent:1 regions:1'

say() { printf '%s\n' "$*"; }

# Sums up what tests say they covered: lines "covered: NUMBER WHAT" of logs.
covered() {
    cat "$@" 2>/dev/null |
        sed -n 's/^covered: \([0-9][0-9]*\) \(.*\)$/\1 \2/p' |
        awk '{ n = $1; sub(/^[0-9]+ /, ""); total[$0] += n }
             END { for (what in total) printf "  %12d  %s\n", total[what], what }' | sort -k 2
}

say "building the tests"
cargo test --quiet --no-run && cargo test --quiet --no-run --features shuttle --test interleavings || exit 1
round=0
failed=
while [ -z "$failed" ] && { [ "$round" = 0 ] || [ "$(date +%s)" -lt "$end" ]; }; do
    round=$((round + 1))
    for entry in $tests; do
        # At least one turn of each.
        [ "$round" = 1 ] || [ "$(date +%s)" -lt "$end" ] || break
        test=${entry%:*} cases=${entry#*:}
        log=$logs/$test-$round.log
        [ "$test" = interleavings ] && features='--features shuttle' || features=
        # shellcheck disable=SC2086 # no feature is no argument
        if ! NUMPACK_TEST_CASES=$cases timeout --kill-after=10 1800 \
            cargo test --quiet $features --test "$test" -- --show-output >"$log" 2>&1 </dev/null; then
            failed="$test: $log"
            break
        fi
    done
    # Both backends, where they are built: states of several processes, and random operations.
    if [ -z "$failed" ] && [ -x "$bin/python" ] && "$bin/python" -c 'import numpack, pytest' 2>/dev/null; then
        for backend in rust python; do
            log=$logs/pytest-$backend-$round.log
            # The Python backend takes several times as long for each.
            [ "$backend" = rust ] && cases=200 || cases=50
            NUMPACK_BACKEND=$backend NUMPACK_TEST_CASES=$cases timeout --kill-after=10 1800 "$bin/python" -m pytest -q \
                tests/python/test_model.py tests/python/test_both_backends.py tests/python/test_concurrency.py \
                tests/python/test_damage.py tests/python/test_dying.py >"$log" 2>&1 </dev/null || { failed="pytest, backend $backend: $log"; break; }
        done
    fi
    # Processes of both backends, threads and mounts at once.
    if [ -z "$failed" ] && [ -x "$bin/npkfs" ]; then
        log=$logs/histories-$round.log
        NUMPACK_BACKEND=rust NUMPACK_TEST_CASES=40 timeout --kill-after=10 1800 "$bin/python" -m pytest -q -o timeout=1200 \
            tests/python/test_histories.py >"$log" 2>&1 </dev/null || failed="histories: $log"
    fi
    # Other random operations of programs that nobody here wrote; 77 where they cannot run.
    if [ -z "$failed" ] && [ -x "$bin/npkfs" ]; then
        for program in fsx fio; do
            log=$logs/$program-$round.log
            timeout --kill-after=10 1800 "$bin/python" tests/proofs "$program" --long >"$log" 2>&1 </dev/null
            case $? in 0 | 77) ;; *) failed="$program: $log"; break ;; esac
        done
    fi
    say "round $round: $(($(date +%s) < end ? (end - $(date +%s)) / 60 : 0)) minutes left"
done
say "covered in $round rounds:"
covered "$logs"/*.log
if [ -n "$failed" ]; then
    say "FAILED: $failed"
    grep -h 'NUMPACK_TEST_SEED=\|panicked at' "${failed##*: }" | tail -n 6
    exit 1
fi
say 'nothing was found'
