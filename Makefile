# fastfeat: everything a user or developer runs. `make` alone lists the targets.
#
# Needs only Python >= 3.11, a C compiler and pip; everything else goes into $(VENV).
# PYTHON=python3.13 picks the interpreter, VENV=/elsewhere the environment.

PYTHON ?= python3
VENV ?= .venv
DEBUG_VENV ?= .venv-debug
DEBUG_TREE := build/debug-tree
TSAN_TREE := build/tsan-tree
PY := $(VENV)/bin/python
ONLY ?=
ARGS ?=
TWO := -n 2 # tests at once

export PIP_DISABLE_PIP_VERSION_CHECK := 1

NATIVE := $(wildcard fastfeat/_core/*.pyx fastfeat/_core/*.pxd fastfeat/_core/*.h)
# What a debug tree needs to build and to run the tests: no built extension, no environment.
TREE := $(wildcard fastfeat server examples tests benchmarks docs) pyproject.toml setup.py README.md LICENSE Makefile
# Not about the core: a debug build has nothing to add to them.
NOT_CORE := source install cli flights readme files faulty_files log log_controls places snapshot snapshot_faults \
  history history_faults history_controls inspection inspection_faults crash_loop crash_images durability_controls \
  durable_cli flights_answers reclaim_model windows_engines ondemand_faces ondemand_training window_model explain

EXTRA := import sys, tomllib; \
  print("\n".join(tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"][sys.argv[1]]))

.DEFAULT_GOAL := help
.PHONY: help demo test torture test-long check debug-test model tsan-test bars bench-smoke build format clean
.DELETE_ON_ERROR:

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.built $(VENV)/.extra-demo  ## 336,776 real flights: load, serve, ask, train, predict (under a minute once built)
	$(PY) -m fastfeat.cli demo $(ARGS)

test: $(VENV)/.built $(VENV)/.extra-demo $(VENV)/.extra-test $(VENV)/.extra-bench  ## run the tests (under five minutes)
	$(PY) -m pytest $(TWO) -m "not long and not torture" $(ARGS)

torture: $(VENV)/.built $(VENV)/.extra-demo $(VENV)/.extra-test $(VENV)/.extra-bench  ## kill, cut off and damage stores; the tests that take long
	$(PY) -m pytest -m "torture and not long" $(ARGS)

test-long: $(VENV)/.built $(VENV)/.extra-demo $(VENV)/.extra-test $(VENV)/.extra-bench  ## run the campaigns too
	FASTFEAT_HYPOTHESIS=long $(PY) -m pytest $(ARGS)

check: $(VENV)/.built $(VENV)/.extra-demo $(VENV)/.extra-test $(VENV)/.extra-bench $(VENV)/.extra-lint  ## ruff, cython-lint, mypy strict
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	PATH="$(abspath $(VENV))/bin:$$PATH" cython-lint $(filter %.pyx %.pxd,$(NATIVE)) $(wildcard benchmarks/*.pyx)
	$(PY) -m mypy

debug-test: $(DEBUG_VENV)/.built $(DEBUG_VENV)/.extra-demo $(DEBUG_VENV)/.extra-test  ## the core's tests on a build with checks on
	cd $(DEBUG_TREE) && $(abspath $(DEBUG_VENV))/bin/python -m pytest $(TWO) -m "not long and not torture" \
	  $(foreach name,$(NOT_CORE),--ignore=tests/test_$(name).py) --ignore-glob='tests/*bench*' $(ARGS)

# The core as threads under ThreadSanitizer: no report, and one where a race is seeded (exit code 66). No report is
# suppressed; libraries that were not built for it (Python, NumPy, Arrow) are not looked at, only their locks are.
TSAN_RUN := cd $(TSAN_TREE) && env LD_PRELOAD="$$($${CC:-cc} -print-file-name=libtsan.so)" \
  TSAN_OPTIONS="halt_on_error=0 exitcode=66 ignore_noninstrumented_modules=1 history_size=7" \
  $$(setarch -R true 2>/dev/null && echo setarch -R) $(abspath $(PY)) -m tests.tsan_program

tsan-test: $(TSAN_TREE)/.built  ## the core's threads under ThreadSanitizer, and a seeded race that it must find
	$(TSAN_RUN) 40
	@echo "and with a seeded race:"
	export FASTFEAT_SEEDED_BUG=plain_stores; $(TSAN_RUN) 15 >seeded.log 2>&1; test $$? = 66 && grep -m 1 "data race" seeded.log

model: $(VENV)/.built $(VENV)/.extra-test  ## check the reclaim protocol's model, and that seeded bugs are found (needs spin)
	$(PY) -m pytest -m "not long" -rs tests/test_reclaim_model.py $(ARGS)

bars: $(VENV)/.built $(VENV)/.extra-bench  ## measure every bar of benchmarks/bars.toml (ONLY=prefix for some)
	$(PY) -m benchmarks.bars $(if $(ONLY),--only $(ONLY)) $(ARGS)

bench-smoke: $(VENV)/.built $(VENV)/.extra-bench  ## each benchmark once, small, so that none rots
	$(PY) -m benchmarks.bars --smoke $(ARGS)

build: $(VENV)/bin/python  ## rebuild the extensions in place (developers)
	rm -f $(VENV)/.built
	@$(MAKE) --no-print-directory $(VENV)/.built

format: $(VENV)/.extra-lint  ## let ruff rewrite the sources
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean:  ## remove everything that make made
	rm -rf $(VENV) $(DEBUG_VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks
	find fastfeat server examples tests benchmarks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
	find fastfeat -name '*.so' -delete

# Environments. A stamp is newer than what it was made from, so a second `make test` starts at once.

%/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "fastfeat needs Python 3.11 or newer; name one: make PYTHON=python3.13 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' || \
	  { echo "fastfeat compiles a C core and needs Python's headers (Debian: apt install python3-dev)" >&2; exit 1; }
	@command -v "$${CC:-cc}" >/dev/null || \
	  { echo "fastfeat compiles a C core and needs a C compiler (Debian: apt install gcc)" >&2; exit 1; }
	$(PYTHON) -m venv $(@D:/bin=)

$(VENV)/.built: $(NATIVE) setup.py pyproject.toml | $(VENV)/bin/python
	@echo "building fastfeat into $(VENV) (a minute or two the first time)"
	$(PY) -m pip install -q -e .
	@touch $@

$(DEBUG_VENV)/.built: $(DEBUG_TREE)/.synced | $(DEBUG_VENV)/bin/python
	@echo "building fastfeat with FASTFEAT_DEBUG=1 into $(DEBUG_VENV)"
	cd $(DEBUG_TREE) && FASTFEAT_DEBUG=1 $(abspath $(DEBUG_VENV))/bin/python -m pip install -q -e .
	@touch $@

$(TSAN_TREE)/.built: $(TSAN_TREE)/.synced | $(VENV)/.built $(VENV)/.extra-test
	@echo "building fastfeat with FASTFEAT_SANITIZE=thread in $(TSAN_TREE) (a few minutes)"
	cd $(TSAN_TREE) && FASTFEAT_SANITIZE=thread $(abspath $(PY)) setup.py -q build_ext --inplace
	@touch $@

# Why a copy: extensions are built beside their sources, and the debug ones must not replace the others.
$(DEBUG_TREE)/.synced $(TSAN_TREE)/.synced: $(shell find $(TREE) -name '*.so' -prune -o -name __pycache__ -prune -o -type f -print 2>/dev/null)
	rm -rf $(@D) && mkdir -p $(@D)
	tar -c --exclude='*.so' --exclude=__pycache__ $(TREE) | tar -x -C $(@D)
	@touch $@

# One extra of pyproject.toml, without building the package again.
define extra
$(1)/.extra-%: pyproject.toml | $(1)/bin/python
	@$(1)/bin/python -c '$$(EXTRA)' $$* > $(1)/extra-$$*.txt
	@echo "installing extra '$$*' into $(1)"
	$(1)/bin/python -m pip install -q -r $(1)/extra-$$*.txt
	@touch $$@
endef
$(eval $(call extra,$(VENV)))
$(eval $(call extra,$(DEBUG_VENV)))
