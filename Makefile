# What there is to do here. Each line is short; the work is in scripts/ and in whit itself.
#
#   make try      a fresh machine to a proven adapter: environment, install, check, train, eval, run
#   make test     install what the tests need and run them (SLOW=1: the slow ones too, as CI does)
#   make check    exactly what CI runs: style, types, docs and tests
#   make docs     write the generated docs anew
#   make bench    every figure that the README quotes, by its command there (hours; ONLY=sst2: those with this word)
#
# GPU=1 installs torch's CUDA build even where no NVIDIA GPU is seen.

PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
TESTS ?= tests
MARK = $(if $(filter-out 0 false,$(CI)$(SLOW)),,-m "not slow")

.PHONY: help install try test lint types docs docs-check engine page check bench dev clean

help:
	@sed -n '3,/^$$/s/^# \{0,1\}//p' Makefile

install:
	@$(PYTHON) scripts/install

try: install
	@scripts/try

dev:
	@$(PYTHON) scripts/install dev bench

test: dev
	python -m pytest -q $(MARK) $(TESTS)

lint: dev
	ruff check .
	ruff format --check .

types: dev
	mypy

docs: dev
	python scripts/make_docs.py

docs-check: dev
	python scripts/make_docs.py --check

engine:
	@if command -v cargo >/dev/null; then set -x; scripts/build-engine --test; \
	else echo "no cargo here: the engine's native tests are left out"; fi

page:
	@if command -v npm >/dev/null; then set -x; (cd web && npm ci --prefer-offline --no-audit --no-fund) && scripts/build-page --check; \
	else echo "no npm here: the page is not compared with what its TypeScript compiles to"; fi

# The tests come last, so that their closing line is the last.
check: lint types docs-check engine page test

bench: dev
	@python scripts/bench $(ONLY)

clean:
	rm -rf .venv try .pytest_cache .mypy_cache .ruff_cache .hypothesis
