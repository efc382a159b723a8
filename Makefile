# Development commands. Each does everything it needs from a fresh clone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: venv demo test test-cluster check bench format clean

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,dev,hpc]'
	touch $(STAMP)

demo: venv
	$(BIN)/deepict-dask demo demo --overwrite

test: venv
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not cluster" tests deepict_dask

# Workers lost, stopped and started as programs of their own; a real Slurm where it is installed.
test-cluster: venv
	$(BIN)/python -m pytest -m cluster tests

check: venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q --doctest-modules deepict_dask

bench: venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks

format: venv
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) demo build dist .pytest_cache .mypy_cache .ruff_cache
