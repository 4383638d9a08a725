#!/bin/sh
# Makes sure that this machine can build and test, and makes .venv/.
#
#     sh .ci/setup.sh tools   Rust, a C compiler, Python with venv: fails when one is missing and cannot be installed
#     sh .ci/setup.sh checks  rustfmt, clippy and valgrind: says what is missing, never fails
#     sh .ci/setup.sh mount   fusermount3 and /dev/fuse: says what is missing, never fails
#     sh .ci/setup.sh proofs  the programs that mounts are tested with: says what is missing, never fails
#     sh .ci/setup.sh bench   the file systems that mounts are measured against: says what is missing, never fails
#
# Says what it installs before it does. Safe to run any number of times; silent when there is nothing to do.
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
venv=.venv

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# How to become root: "" when we are, the command when there is one, failure when there is none.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        echo ''
    elif have sudo && { sudo -n true 2>/dev/null || [ -t 0 ]; }; then
        echo sudo
    else
        return 1
    fi
}

# apt_install WHY PACKAGE...
apt_install() {
    why=$1; shift
    if ! have apt-get; then
        say "$why is missing, and there is no apt-get here; install what Debian calls: $*"
        return 1
    fi
    if ! root=$(as_root); then
        say "$why is missing, and this needs root, without which (and without sudo) it cannot be installed here"
        say "run as root: apt-get install $*"
        return 1
    fi
    say "$why is missing; installing with ${root:+$root }apt-get: $*"
    # A fresh image has no package lists; old lists name versions that the mirror no longer has.
    set -- env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"
    # shellcheck disable=SC2086 # $root is one word or nothing
    $root "$@" </dev/null >/dev/null 2>&1 && return 0
    # shellcheck disable=SC2086
    $root apt-get update -qq </dev/null >/dev/null && $root "$@" </dev/null >/dev/null
}

# version_at_least HAVE WANT, both MAJOR.MINOR[.PATCH]
version_at_least() {
    [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]
}

setup_rust() {
    have cargo || fail 'Rust is missing (no cargo in PATH); install it from https://rustup.rs, then run make again'
    want=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    found=$(rustc --version | cut -d ' ' -f 2)
    version_at_least "$found" "$want" ||
        fail "Rust $found is too old, $want or later is needed; run: rustup update stable"
}

setup_compiler() {
    have cc || apt_install 'a C compiler (cc, the linker of Rust)' gcc libc6-dev || exit 1
}

python_is_new_enough() {
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null
}

setup_python() {
    have "$PYTHON" || apt_install "Python ($PYTHON)" python3 python3-venv || exit 1
    python_is_new_enough ||
        fail "$("$PYTHON" --version 2>&1) is too old, 3.10 or later is needed; run: make PYTHON=/path/to/python3"
    # The stamp holds the path: the scripts of a virtual environment do not survive a move.
    if [ "$(cat "$venv/.path" 2>/dev/null)" = "$PWD" ] && "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        return
    fi
    if ! "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null; then
        minor=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
        apt_install 'the venv module of Python' "python$minor-venv" || exit 1
    fi
    say "making $venv/ with $("$PYTHON" --version)"
    rm -rf "$venv"
    "$PYTHON" -m venv "$venv"
    echo "$PWD" >"$venv/.path"
}

# What only the checks need, and what can be missing: test.sh says which of them it could not run.
setup_checks() {
    for part in rustfmt clippy; do
        cargo "${part#rust}" --version >/dev/null 2>&1 && continue
        have rustup || { say "$part is missing, and there is no rustup here to add it; its checks will not run"; continue; }
        say "$part is missing; adding it with rustup"
        rustup component add "$part" || say "its checks will not run"
    done
    # Counts instructions.
    [ "$(uname -s)" != Linux ] || have valgrind || apt_install 'valgrind (guards against what is slower)' valgrind || true
}

setup_mount() {
    [ "$(uname -s)" = Linux ] || { say 'npkfs mounts on Linux only; what needs a mount cannot run here'; return; }
    have fusermount3 || apt_install 'fusermount3 (lets ordinary users mount)' fuse3 || true
    if [ ! -e /dev/fuse ]; then
        say '/dev/fuse is missing; on a host: modprobe fuse; for a container: --device /dev/fuse --cap-add SYS_ADMIN'
    elif ! (: <>/dev/fuse) 2>/dev/null; then
        say "no right to open /dev/fuse ($(stat -c '%A, owner %U' /dev/fuse)); as root: chmod 666 /dev/fuse"
    fi
}

# A program that is missing is reported by test.sh as not run.
setup_proofs() {
    [ "$(uname -s)" = Linux ] || return 0
    set --
    have fio || set -- "$@" fio
    have stress-ng || set -- "$@" stress-ng
    # Shows a folder at two places, between which locks do not reach, as between hosts.
    have bindfs || set -- "$@" bindfs
    # pjdfstest is linked with it.
    [ -e /usr/include/sys/acl.h ] || set -- "$@" libacl1-dev
    [ $# = 0 ] || apt_install 'what mounts are tested with' "$@" || true
    build_tool fsx 0.3.2
    build_tool pjdfstest 0.2.2
}

# build_tool NAME VERSION. Not optimised: that takes four times as long to build, and the disk is what they wait for.
build_tool() {
    tools=target/tools
    [ "$("$tools/bin/$1" --version 2>/dev/null)" = "$1 $2" ] && return
    say "building $1 $2 with cargo, into $tools/ (half a minute)"
    CARGO_PROFILE_DEV_DEBUG=0 cargo install --quiet --locked --debug --root "$tools" --target-dir "$tools/build" \
        --version "$2" "$1" </dev/null || say "$1 cannot be built; it will not be run"
    rm -rf "$tools/build"
}

# A file system that is missing is left out of the table, which says so.
setup_bench() {
    [ "$(uname -s)" = Linux ] || return 0
    set --
    have mksquashfs || set -- "$@" squashfs-tools
    have squashfuse_ll || have squashfuse || set -- "$@" squashfuse
    have mkfs.erofs || set -- "$@" erofs-utils
    have mkfs.btrfs || set -- "$@" btrfs-progs
    # With the example that operations on names are compared with.
    [ -e /usr/share/doc/libfuse3-dev/examples ] || set -- "$@" libfuse3-dev pkg-config
    [ $# = 0 ] || apt_install 'what makes file systems to compare with' "$@" || true
    for kind in squashfs erofs btrfs; do
        grep -qw "$kind" /proc/filesystems || modprobe "$kind" 2>/dev/null ||
            say "this kernel has no $kind; it will not be measured"
    done
}

case ${1-} in
    tools) setup_rust; setup_compiler; setup_python ;;
    checks) setup_checks ;;
    mount) setup_mount ;;
    proofs) setup_proofs ;;
    bench) setup_bench ;;
    *) fail "usage: sh .ci/setup.sh tools|checks|mount|proofs|bench" ;;
esac
