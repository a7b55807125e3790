# Two commands do all set-up: `make demo` and `make test`. Both install what is missing.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# A target directory outside the checkout is used when there is one; else ./target.
OUTSIDE := $(HOME)/.cache/cairn-target
export CARGO_TARGET_DIR ?= $(if $(wildcard $(OUTSIDE)),$(OUTSIDE),$(CURDIR)/target)
BIN := $(CARGO_TARGET_DIR)/debug
JOBS ?= 2
PYTHON ?= python3
VENV := .venv

.PHONY: help
help: ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

.PHONY: tools
tools:
	@.ci/install-tools

.PHONY: build
build: tools
	cargo build -j$(JOBS) --locked --workspace --bins --examples

.PHONY: demo
demo: build ## The main job on real flights: definitions, ingest, training set, models, predictions. KEEP=1, NODES=3
	NODES=$(or $(NODES),1) KEEP=$(or $(KEEP),) CAIRND=$(BIN)/cairnd $(BIN)/examples/flights

.PHONY: demo-history
demo-history: build venv ## The year on three nodes: a backfill under kill -9, a backtest, datasets made again byte for byte. PLOT=FILE.svg KEEP=1
	PLOT=$(or $(PLOT),$(CARGO_TARGET_DIR)/history.svg) KEEP=$(or $(KEEP),) CAIRND=$(BIN)/cairnd \
	  CAIRN_PYTHON=$(CURDIR)/$(VENV)/bin/python $(BIN)/examples/flights history

.PHONY: test
test: tools venv ## All tests, in their short form, and the lints
	$(MAKE) --no-print-directory lint
	cargo build -j$(JOBS) --locked --workspace --bins --examples
	CAIRN_PYTHON=$(CURDIR)/$(VENV)/bin/python cargo nextest run --build-jobs $(JOBS) --locked --workspace
	cargo test -j$(JOBS) --locked --workspace --doc -q

.PHONY: lint
lint: tools ## Formatting, clippy with warnings as errors, licences and dependency edges
	cargo fmt --all --check
	cargo clippy -j$(JOBS) --locked --workspace --all-targets -- -D warnings
	cargo deny --log-level error check bans licenses sources

.PHONY: venv
venv: $(VENV)/.ready

$(VENV)/.ready: client/examples/requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q --disable-pip-version-check -r client/examples/requirements.txt
	touch $@

.PHONY: bench
bench: build ## Every published number of this machine; Redis beside it where it is installed
	$(BIN)/cairn-bench --cairnd $(BIN)/cairnd $(ARGS)

.PHONY: bench-replication
bench-replication: build ## Three nodes: writes beside etcd where it is installed, killed leaders, a node that catches up, idle groups
	@.ci/install-extra etcd-server
	$(BIN)/cairn-bench --cairnd $(BIN)/cairnd --only replication,failover,catch-up,idle $(ARGS)

.PHONY: bench-history
bench-history: build venv ## A training set of a million rows, beside Polars and DuckDB: ARGS="--growth 0.1,0.3,1"
	$(VENV)/bin/python bench/history/run.py --bin $(BIN) $(ARGS)

.PHONY: bench-backfill
bench-backfill: build venv ## A backfill from a Parquet file, beside DuckDB, which writes it again: ARGS="--versions 30"
	$(VENV)/bin/python bench/history/backfill.py --bin $(BIN) $(ARGS)

.PHONY: bench-sql
bench-sql: build venv ## Online reads beside SQL and backtests, scans of history beside DataFusion, as-of reads beside latest ones
	$(VENV)/bin/python bench/sql/run.py --bin $(BIN) $(ARGS)

.PHONY: jepsen
jepsen: build ## Mixed faults on five real processes, a verdict on each promise: MINUTES=5 SEED=1; KILLS=500 for kill -9 alone
	@.ci/install-extra libfaketime
	$(BIN)/cairn-jepsen --cairnd $(BIN)/cairnd --seed $(or $(SEED),1) \
	  $(if $(KILLS),--kills $(KILLS),--minutes $(or $(MINUTES),5)) $(ARGS)

.PHONY: jepsen-selftest
jepsen-selftest: build ## The harness must be able to fail: each seeded bug, what caught it, after how many seconds
	cargo build -j$(JOBS) --locked --workspace --bins --features cairn-node/seeded-bugs
	mv $(BIN)/cairnd $(BIN)/cairnd-seeded-bugs
	cargo build -j$(JOBS) --locked --workspace --bins
	simulation=$$(cargo nextest list --build-jobs $(JOBS) --locked --workspace --list-type binaries-only \
	    --message-format json | $(PYTHON) -c 'import json, sys; \
	    print(json.load(sys.stdin)["rust-binaries"]["cairn-consensus"]["binary-path"])'); \
	$(BIN)/cairn-jepsen --cairnd $(BIN)/cairnd-seeded-bugs --self-test --nodes 3 --simulation "$$simulation" $(ARGS)

.PHONY: sim
sim: tools ## Simulated clusters under faults: SEEDS=2000 of them, or one again with its last events: SEED=7
	@if [ -n "$(SEED)" ]; then \
	    CAIRN_SIM_SEED=$(SEED) cargo nextest run --build-jobs $(JOBS) --locked --workspace --no-capture \
	        -E 'package(cairn-consensus) & test(=sim::tests::one_run)'; \
	else \
	    CAIRN_SIM_SEEDS=$(or $(SEEDS),2000) cargo nextest run --build-jobs $(JOBS) --locked --workspace --profile sim \
	        -E 'package(cairn-consensus) & test(/^sim::tests::(search|seeds)/)'; \
	fi

.PHONY: sim-selftest
sim-selftest: tools ## Mistakes made on purpose, each found by the simulation and by which invariant
	cargo nextest run --build-jobs $(JOBS) --locked --workspace --profile sim \
	    -E 'package(cairn-consensus) & test(/^sim::tests::selftest/)'

.PHONY: clean
clean: ## Removes build outputs of this checkout (an outside target directory stays)
	rm -rf target $(VENV)
