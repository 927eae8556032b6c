# Every target sets up what it needs (install/setup.sh: a look, and nothing more once all is there).
SHELL := /bin/bash
PYTHON := .venv/bin/python
PLUGIN := dist/service-tunnel/service-tunnel
PLUGIN_SOURCES := $(shell find cni_plugin -name '*.py') \
	$(addprefix install/,service-tunnel.spec entry.py only_utf8.py build.py interpreter.py constraints.txt)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help setup demo test lint unit kernel conformance portability vm bench faults fuzz plugin image clean

help: ## what there is to make
	@awk -F ':[^#]*## ' '/^[a-z]+:[^#]*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## system packages and .venv, where they are missing
	@install/setup.sh

demo: setup $(PLUGIN) ## the main job, shown on this machine (ARGS=--keep leaves it standing)
	@$(PYTHON) -m tests.demo $(ARGS)

test: setup $(PLUGIN) ## all tests: lint, unit, kernel here, portability, conformance, kernel in the virtual machine
	@$(PYTHON) -m tests.run_all

lint: setup ## format, style, types, import rules
	@$(PYTHON) -m tests.run_all lint

unit: setup ## tests without root and namespaces
	@$(PYTHON) -m tests.run_all unit

kernel: setup $(PLUGIN) ## tests in network namespaces of this machine's kernel (root)
	@$(PYTHON) -m tests.run_all kernel

conformance: setup $(PLUGIN) ## the CNI contract, and chains of reference plugins driven by libcni (root)
	@$(PYTHON) -m tests.run_all conformance

portability: setup $(PLUGIN) ## the built plugin on other releases and in odd surroundings, two builds compared (root)
	@$(PYTHON) -m tests.run_all portability

vm: setup $(PLUGIN) ## the same tests on Debian's stock kernel in a virtual machine (root)
	@$(PYTHON) -m tests.run_all vm

bench: setup $(PLUGIN) ## measurements as ratios, into build/bench.json (ONLY="plugin-version plugin-*-cold", ARGS=--help; root)
	@$(PYTHON) -m tests.bench $(ARGS) $(foreach name,$(ONLY),'$(name)')

faults: setup $(PLUGIN) ## the fault matrix: what is lost when, into build/faults.json (ARGS="--connections 200 --resume", ARGS=--help; root)
	@$(PYTHON) -m tests.faults $(ARGS)

fuzz: setup ## fuzz the parsers (ARGS="--count 1000000 --seed 7 record", ARGS=--help)
	@$(PYTHON) -m tests.fuzz $(ARGS)

plugin: setup $(PLUGIN) ## the CNI plugin as a frozen folder, dist/service-tunnel

$(PLUGIN): $(PLUGIN_SOURCES) | setup
	@$(PYTHON) -m install.build $(@D)
	@touch $@

image: setup $(PLUGIN) ## the image's content: dist/image, and dist/image.tar.gz (root)
	@$(PYTHON) -m install.image root dist/image

clean: ## what was built or cached in this folder (.venv and the virtual machine's image stay)
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis *.egg-info
	find cni_plugin node_helper install tests conformance -name __pycache__ -prune -exec rm -rf {} +
