# The two commands: `make up` shows it working, `make test` proves it.

CARGO ?= cargo
UP_PORT ?= 3100

.PHONY: up check test unit alerts clients soak bench fuzz fmt lint docs clean

## Build, install the pinned CLI, start sidecar and adapter with a first turn, serve the console.
## UP_CONFIG=sidecar.yaml uses real providers instead of the scripted one, UP_FRESH=1 begins a new session.
up:
	@[ -x target/release/outrigger ] || echo "building Outrigger and installing opencode: some 7 minutes and 2 GB, once"
	$(CARGO) build --release --locked
	UP_PORT=$(UP_PORT) sh tests/up.sh

## For every commit: format, lints, the rules of the house, unit tests, end-to-end tests with few kills.
check:
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	OUTRIGGER_KILLS=2 $(CARGO) test --locked

## Everything: unit and end-to-end tests, the official libraries, the real CLIs.
test: tools unit alerts clients

unit:
	$(CARGO) test --locked

## The alert rules, with promtool.
alerts:
	sh tests/alerts.sh

## The long campaigns: 1,000 kills of the sidecar, 3,000 of the adapter and its CLIs, 10,000 sessions with budgets, a minute of all attacks at once,
## and clients that the other tests leave out. SOAK_CACHE keeps what the clients install.
SOAK_CACHE ?= $(CURDIR)/target/soak-clients
soak: tools
	$(CARGO) build --release --locked
	OUTRIGGER_SOAK=1 OUTRIGGER=$(CURDIR)/target/release/outrigger $(CARGO) test --locked --test e2e soak -- --nocapture --test-threads=1
	OUTRIGGER_SOAK=1 $(CARGO) test --locked --test e2e after_a_power_cut -- --nocapture
	OUTRIGGER_KILLS=300 $(CARGO) test --locked --test e2e kills_of_the -- --nocapture --test-threads=1
	sh tests/soak/clients/install.sh $(SOAK_CACHE)
	OUTRIGGER=$(CURDIR)/target/release/outrigger node tests/soak/clients/run.mjs $(SOAK_CACHE)

clients:
	$(CARGO) build --locked
	tests/clients/run.sh

## What the tests need from the system; said loudly when it cannot be had.
tools:
	sh tests/tools.sh

## Prints the tables of docs/benchmarks.md; takes some minutes.
bench:
	$(CARGO) build --release --locked
	$(CARGO) bench --locked --bench proxy
	$(CARGO) bench --locked --bench events
	OUTRIGGER=$(CURDIR)/target/release/outrigger tests/clients/run.sh --plain start-times.mjs

## FUZZ_SECONDS for each target; needs cargo-fuzz and a nightly compiler, or builds with the stable one.
fuzz:
	sh fuzz/run.sh

fmt:
	$(CARGO) fmt

lint:
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings

docs:
	sh tests/docs.sh

clean:
	$(CARGO) clean
	rm -rf tests/clients/node_modules .outrigger
