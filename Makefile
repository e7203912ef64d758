# On a fresh Debian 12: `make demo` shows the main job, `make test` proves it. `make help` lists the rest.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

RUN_PACKAGES := python3 python3-venv libdw1
DEMO_PACKAGES := $(RUN_PACKAGES) gcc libc6-dev stress-ng
TEST_PACKAGES := $(DEMO_PACKAGES) g++ binutils gdb strace valgrind git perl xz-utils gzip openssl nodejs default-jdk-headless \
	libc6-dbg libpython3.11-testsuite qemu-user kmod gcc-12 make rustc rpm rpm2cpio cpio debian-archive-keyring \
	clang llvm libbpf-dev qemu-system-x86 mmdebstrap busybox-static e2fsprogs systemd systemd-journal-remote procps \
	qemu-utils ovmf grub-pc-bin grub-efi-amd64-bin grub-common fdisk mtools dosfstools \
	bochs bochs-term bochsbios vgabios
SLOW_PACKAGES := $(TEST_PACKAGES) postgresql nginx-light redis-server firefox-esr chromium
FRESH_PACKAGES := mmdebstrap debian-archive-keyring git python3 util-linux
BENCH_PACKAGES := $(TEST_PACKAGES)

.PHONY: help demo test test-slow fresh emulator fuzz lint format schema article bench setup clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## */\1|/p' $(MAKEFILE_LIST) | while IFS='|' read -r target what; do \
		printf '  make %-10s %s\n' "$$target" "$$what"; done

COMPILED := setup.py $(wildcard src/splitlock/guard/bpf/*.[ch] src/splitlock/guest/*/*.[chS] src/splitlock/guest/*/*/*.[chS] \
	src/splitlock/process/*/*/*.[chS] src/splitlock/image/scan/*.[ch])

$(VENV)/installed: pyproject.toml $(COMPILED)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/developer: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo:  ## set up, then name the split locks of a small program and of stress-ng
	@scripts/setup.sh $(DEMO_PACKAGES)
	@$(MAKE) --no-print-directory $(VENV)/installed
	@mkdir -p build && $(CC) -O2 -g -pthread -o build/demo tests/programs/demo.c
	@echo && echo '$$ splitlock run -- ./demo' && $(BIN)/splitlock run -- build/demo
	@echo && echo '$$ splitlock run -- stress-ng --lockbus 1 --lockbus-ops 1' && \
		$(BIN)/splitlock run -- stress-ng --quiet --lockbus 1 --lockbus-ops 1

setup:
	@scripts/setup.sh $(TEST_PACKAGES)
	@$(MAKE) --no-print-directory $(VENV)/developer

lint: setup  ## format, lint, import layers, types
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/lint-imports >/dev/null || $(BIN)/lint-imports
	@$(BIN)/mypy --no-error-summary

test: lint  ## set up, lint, and run the tests, or TESTS=PATHS (minutes)
	@$(BIN)/pytest -q -m 'not slow' -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(TESTS)

test-slow: setup  ## the tests that take longer than CI has
	@scripts/setup.sh $(SLOW_PACKAGES)
	@$(BIN)/pytest -q -m slow

fresh:  ## make TARGET="demo test" in a new Debian of RELEASE, where nothing is installed (half an hour)
	@scripts/setup.sh $(FRESH_PACKAGES)
	@RELEASE=$(RELEASE) TESTS='$(TESTS)' scripts/fresh.sh build/fresh $(TARGET)

emulator: setup  ## build the processor of `splitlock guest --vmx`, once (two minutes)
	@src/splitlock/guest/bochs/build.sh

fuzz: setup  ## fuzz the readers, MINUTES=20 each; by coverage where atheris can be had
	@$(BIN)/pip install --quiet --disable-pip-version-check atheris || echo 'no atheris for this Python: without coverage'
	@for target in image package signature text oops kallsyms; do \
		$(BIN)/python tests/fuzz/run.py $$target --minutes $(or $(MINUTES),20) || exit 1; done

bench: setup  ## measure against native, QEMU, valgrind, objdump; rewrites docs/benchmarks.md
	@scripts/setup.sh $(BENCH_PACKAGES)
	@$(BIN)/python benchmarks/bench.py --markdown docs/benchmarks.md
	@$(BIN)/python benchmarks/steps.py --peers ptrace,strace,valgrind --markdown docs/benchmarks.md
	@package=$$(scripts/kernels.sh build/kernels amd64) && \
		$(BIN)/python benchmarks/audit.py "$${package#amd64 }" --markdown docs/benchmarks.md
	@$(BIN)/python benchmarks/gate.py --markdown docs/benchmarks.md
	@$(BIN)/python benchmarks/guests.py --markdown docs/benchmarks.md
	@$(BIN)/python benchmarks/vmx.py --markdown docs/benchmarks.md
	@$(BIN)/python benchmarks/watch.py --markdown docs/benchmarks.md
	@$(BIN)/python benchmarks/plans.py --markdown docs/benchmarks.md
	@$(BIN)/python benchmarks/builds.py --markdown docs/benchmarks.md

schema: setup  ## regenerate docs/*.schema.json from the reports' types
	@$(BIN)/python scripts/schema.py

article: emulator  ## run what docs/article-live.md shows, and write it anew
	@$(BIN)/python scripts/article.py

format: setup  ## reformat the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

clean:  ## remove what was built
	rm -rf build $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
