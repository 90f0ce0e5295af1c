# Everything that a contributor runs. `make` alone tells what there is.
# Each target installs what it lacks first (tools/setup), which takes no time when nothing is missing.

PY := .venv/bin/python
# Tests mostly wait: four at a time do on two cores. Each in namespaces of its own (tools/isolated-python).
WORKERS := 4

.PHONY: help demo test test-distros test-systemd test-suspend test-container test-faults fuzz soak lint format bench policy generate man docs lock image release clean test-deb deb test-wheel

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/make \1\t\2/' | expand -t 22

demo:  ## two real llama.cpp servers, a governor and two simulated GPUs: what it does, in a minute (needs root)
	@tools/setup demo
	@$(PY) -m demo

test:  ## all tests, on the real kernel with the simulated driver (needs root)
	@tools/setup test
	@$(PY) -m pytest --dist loadfile --max-worker-restart 0 \
	  --tx "$(WORKERS)*popen//python=tools/isolated-python" $(ARGS)

test-distros:  ## the tests on other kernels and bcc versions, emulated; DISTROS="bookworm trixie" (root; an hour)
	@tools/setup test
	@$(PY) -m tools.distros $(DISTROS)

test-systemd:  ## memscaler as a service of a real systemd, emulated; ARGS="watchdog reload" (root; a quarter of an hour, with --native minutes)
	@tools/setup test
	@$(PY) -m tools.systemd $(ARGS)

test-suspend:  ## an emulated machine with a real systemd that suspends to RAM, and is woken; ARGS=SCENARIO (root; ten minutes)
	@tools/setup test
	@$(PY) -m tools.suspend $(ARGS)

test-container:  ## memscaler in a container: the image, and a real runtime with what compose.yaml says (root; ten minutes)
	@tools/setup test
	@$(PY) -m tools.image.clean
	@$(PY) -m pytest tests/container/scenarios.py -s $(ARGS)

test-deb:  ## the Debian packages, built, linted and installed, in clean roots and emulated; SUITES=trixie (root; half an hour)
	@tools/setup test
	@$(PY) -m tools.deb --test $(SUITES)

test-wheel:  ## the wheel, installed from the index into fresh environments of every python here; PYTHONS="3.12 3.13" (root)
	@tools/setup test
	@$(PY) -m tools.wheel $(PYTHONS)

test-faults:  ## every answer of the driver to every call, in whole daemons too (root; ten minutes)
	@tools/setup test
	@MEMSCALER_FAULTS=all $(PY) -m pytest tests/faults -s $(ARGS)

fuzz:  ## 110,000 hostile requests, files, ports, /proc trees and kernel answers; MEMSCALER_FUZZ=N (root; a quarter of an hour)
	@tools/setup test
	@MEMSCALER_FUZZ=$${MEMSCALER_FUZZ:-110000} $(PY) -m pytest tests/fuzz --timeout 0 -p no:logging $(ARGS)

soak:  ## 8 boards and 64 watches under churn, faults, kills and reloads; MEMSCALER_SOAK_S=1800 (root; half an hour)
	@tools/setup test
	@MEMSCALER_SOAK_S=$${MEMSCALER_SOAK_S:-1800} $(PY) -m pytest tests/soak -s $(ARGS)

lint:  ## formatting, lint, types and architecture, as CI checks them
	@tools/setup test
	@tools/lint

format:  ## write the code the way `make lint` wants it
	@tools/setup test
	@.venv/bin/ruff check --fix-only --quiet . ; .venv/bin/ruff format .

bench:  ## the figures of the README, measured on this machine (needs root)
	@tools/setup test
	@$(PY) -m bench $(ARGS)

policy:  ## replay request traces under every idle-time policy, and write docs/policy.md and its plot (ten minutes)
	@tools/setup test
	@$(PY) -m bench.policy --write-docs $(ARGS)

generate:  ## what is made from the code: shell completion, and parts of the manual
	@tools/setup test
	@$(PY) -m tools.completions
	@$(PY) -m tools.manual

man:  ## the manual, for man(1): build/man
	@tools/setup docs
	@$(PY) -m tools.manual --roff build/man

docs:  ## the documentation as a site, readable without a network: build/site
	@tools/setup docs
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

lock:  ## pin every python package anew (packaging/*.lock): what pyproject.toml wants; ARGS=--upgrade: the newest
	@tools/setup test
	@tools/lock $(ARGS)

image:  ## the container image `memscaler`, with docker, podman or buildah; ARGS="--tag NAME"
	@tools/setup test
	@$(PY) -m tools.image $(ARGS)

release:  ## all of a release but the upload, in build/release; ARGS=--dry-run or --ci-passed
	@tools/setup test
	@$(PY) -m tools.release $(VERSION) $(ARGS)

deb:  ## the Debian package: build/deb; SUITE=bookworm or trixie (root; two minutes)
	@tools/setup docs
	@$(PY) -m tools.deb $(SUITE)

clean:  ## remove what was built and installed here
	rm -rf .venv .cache build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
