# Everything that a contributor runs. `make` alone tells what there is.
# Each target installs what it lacks first (tools/setup), which takes no time when nothing is missing.

PY := .venv/bin/python

.PHONY: help demo test test-distros lint format bench clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/make \1\t\2/' | expand -t 22

demo:  ## a real llama.cpp server, a governor and two simulated GPUs: what it does, in 90 seconds (needs root)
	@tools/setup demo
	@$(PY) -m demo

test:  ## all tests, on the real kernel with the simulated driver (needs root)
	@tools/setup test
	@$(PY) -m pytest $(ARGS)

test-distros:  ## the tests on other kernels and bcc versions, emulated; DISTROS="bookworm trixie" (root; an hour)
	@tools/setup test
	@$(PY) -m tools.distros $(DISTROS)

lint:  ## formatting, lint, types and architecture, as CI checks them
	@tools/setup test
	@tools/lint

format:  ## write the code the way `make lint` wants it
	@tools/setup test
	@.venv/bin/ruff check --fix-only --quiet . ; .venv/bin/ruff format .

bench:  ## the figures of the README, measured on this machine (needs root)
	@tools/setup test
	@$(PY) -m bench $(ARGS)

clean:  ## remove what was built and installed here
	rm -rf .venv .cache build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
