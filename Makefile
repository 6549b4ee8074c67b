# `make demo` and `make test` do all the set-up that they need, on Debian with Python >= 3.11 and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: demo test sb3 check audit docs bench clean

demo: $(VENV)/demo.installed  ## train on Pendulum-v1 and say what came out
	$(BIN)/dynasac train Pendulum-v1

test: check  ## everything that must hold
	$(BIN)/python -m compileall -q src  # or each command that a test starts may do it anew
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile
	@if $(BIN)/python -c 'import importlib.util as u, sys; sys.exit(u.find_spec("stable_baselines3") is None)'; \
	then $(MAKE) docs; else echo 'documentation: skipped, it describes stable-baselines3 too: make sb3'; fi

check: $(VENV)/test.installed  ## style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

docs: $(VENV)/test.installed  ## the documentation, in build/docs; its notebooks run, warnings are errors
	$(BIN)/sphinx-build -q -E -W --keep-going -b html docs build/docs

audit: $(VENV)/audit.installed  ## known vulnerabilities in the versions of constraints.txt
	$(BIN)/python .ci/audit.py $(BIN)/pip-audit

sb3: $(VENV)/sb3.installed  ## stable-baselines3, whose tests are skipped without it (it needs PyTorch)

bench: $(VENV)/bench.installed  ## every number of the README, beside its peers (about two hours)
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo 'Python 3.11 or later is needed: make PYTHON=python3.11 demo'; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null \
		|| { echo 'Python has no ensurepip here: apt install python3-venv, then try again'; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.installed: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) --editable '.[classic-control,report]'
	@touch $@

$(VENV)/test.installed: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) --editable '.[dev]'
	@touch $@

$(VENV)/audit.installed: $(BIN)/python constraints.txt
	$(PIP) pip-audit
	@touch $@

$(VENV)/sb3.installed: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) torch
	$(PIP) --editable '.[sb3]'
	@touch $@

$(VENV)/bench.installed: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) torch
	$(PIP) --editable '.[baselines,mujoco,plot]'
	@touch $@
