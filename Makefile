# Development commands. Each does everything it needs from a fresh clone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: venv demo test test-cluster check test-gpu bench bench-gpu docs format clean

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,dev,hpc,train,docs]'
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

# On a machine with a GPU, whose python3 has PyTorch, CuPy and the rest (docs/gpu.md): no venv is made.
test-gpu:
	$(PYTHON) -m pytest -m gpu -W default -p no:cacheprovider tests/test_gpu.py tests/test_gpu_networks.py tests/test_backend.py tests/test_equalize.py tests/test_mean_pool_nms.py

bench-gpu:
	$(PYTHON) -m benchmarks.bench_gpu --out benchmarks/results/gpu.json

bench: venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks

# Pages in site/, to be opened from disk; no page asks another host.
docs: venv
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

format: venv
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) demo build dist site .pytest_cache .mypy_cache .ruff_cache
