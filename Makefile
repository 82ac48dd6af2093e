# The two doors of the README. Everything else is a preset: cmake --list-presets.
#
#   make demo    build, run the quick start, show its leaderboard
#   make test    build, run all tests
#
# Both first install what is missing (deploy/setup.sh; Debian 12 or newer, root or sudo).

# One compiler a core, but each may take 1.5 GiB where LibTorch's headers are read.
JOBS ?= $(shell awk -v cores=$$(nproc) '/MemAvailable/ {fit = int($$2 / 1572864); \
  print fit < 1 ? 1 : (fit < cores ? fit : cores)}' /proc/meminfo)
SAESWEEP := build/release/bin/saesweep

.PHONY: help setup build demo test

help:
	@sed -n 's/^#   //p' Makefile

setup:
	@deploy/setup.sh

build: setup
	@cmake --preset release --log-level=WARNING
	@cmake --build --preset release -j $(JOBS)

demo: build
	@$(SAESWEEP) run sweeps/othello-quickstart.yaml
	@$(SAESWEEP) leaderboard
	@echo
	@echo "The report: saesweep-out/othello-quickstart/report.html (one file; open it in a browser)"

test: build
	@ctest --preset release -j $$(nproc)
