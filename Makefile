# Two commands do all set-up themselves: `make demo` and `make test`.
VENV ?= .venv
BIN := $(VENV)/bin
SEEDS ?= 100
WORKERS ?= 3
export OMNI_VENV := $(VENV)
export PYTHONDONTWRITEBYTECODE :=
PYTEST := $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal

.PHONY: demo test long check lint types docs conformance faults soak bench clean help

help:  ## say what there is
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo:  ## walk one call through everything, on this machine, and clean up
	@.ci/setup demo
	@$(BIN)/omni-mcp demo

test:  ## set up and run all tests but the long ones
	@.ci/setup dev
	@$(BIN)/python tests/node/setup.py
	@$(BIN)/python tests/servers/setup.py
	$(PYTEST)

long:  ## the long tests: servers of other people, crowds, every kill point, controls of the escape suite
	@.ci/setup dev
	@$(BIN)/python tests/node/setup.py
	@$(BIN)/python tests/servers/setup.py
	OMNI_ALL_EXAMPLES=1 $(PYTEST) -m long

check: lint types docs test  ## everything that CI checks but the long runs

lint:
	@.ci/setup dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types:
	@.ci/setup dev
	$(BIN)/mypy

docs:  ## tables in docs/reference equal the code
	@.ci/setup dev
	$(BIN)/python -m omni_mcp.reference --check

conformance:  ## the official suite, by itself and through the gateway, and the matrix of versions
	@.ci/setup dev
	@$(BIN)/python tests/node/setup.py
	$(BIN)/python tests/conformance/run.py
	$(BIN)/python tests/conformance/run.py --road all
	$(BIN)/python tests/conformance/run.py --clients
	$(BIN)/python tests/matrix/run.py

faults:  ## kill -9 at every point of a call, SEEDS times; each byte of an audit pack changed
	@.ci/setup dev
	$(BIN)/python tests/faults/run.py --seeds $(SEEDS)
	$(BIN)/python tests/evidence/every_byte.py

soak:  ## thousands of calls and 10,000 jobs; descriptors, processes and memory before and after
	@.ci/setup dev
	$(BIN)/python tests/bench/soak.py
	$(BIN)/python tests/bench/soak_cells.py
	$(BIN)/python tests/clients_many/crowd.py

bench:  ## timings, as ratios measured in one run
	@.ci/setup dev
	$(BIN)/python tests/bench/run.py

clean:
	rm -rf $(VENV) .work .pytest_cache .mypy_cache .ruff_cache .hypothesis
