# `make all` runs the default study, `make test` the tests. Both first make the environment, once, from a lock.

PYTHON ?= python3
VENV   ?= .venv
LOCK   ?= envs/cpu.lock
CORES  ?= all
PYTEST_ARGS ?=
LOCK_ARGS   ?=

BIN := $(abspath $(VENV))/bin
# Snakemake's jobs and DVC's stages call `afterimage` and `snakemake` by name. PATH is set for them alone: PYTHON is looked up in
# the user's own, never in the environment that it is to make.
IN_VENV := PATH="$(BIN):$$PATH"
export AFTERIMAGE_LOCK := $(abspath $(LOCK))
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := true
export DVC_NO_ANALYTICS := 1
export HF_HUB_DISABLE_TELEMETRY := 1

# The environment is named by what decides it, so that a change of any of it makes a new one and nothing else does.
define KEY
import hashlib, pathlib, sys
lock, *others = map(pathlib.Path, sys.argv[1:])
if not (3, 11) <= sys.version_info[:2] <= (3, 13):
    sys.exit(f"PYTHON is Python {sys.version.split()[0]}, but Python 3.11, 3.12 or 3.13 is needed: make PYTHON=python3.12 ...")
if not lock.is_file():
    sys.exit(f"LOCK = {lock} is not a file; envs/cpu.lock and envs/gpu.lock are")
parts = [f"{sys.version} {sys.base_prefix} {pathlib.Path.cwd()}".encode(), *(path.read_bytes() for path in (lock, *others))]
print(hashlib.sha256(b"".join(parts)).hexdigest()[:16])
endef
export KEY

.PHONY: all test test-slurm check ui docs lock clean help setup

all: setup ## Run the default study (params.yaml) from raw data to report
	$(IN_VENV) $(BIN)/snakemake --cores $(CORES) all

test: setup ## Run the tests (PYTEST_ARGS="-k seeds" chooses)
	$(IN_VENV) $(BIN)/python -m pytest $(PYTEST_ARGS)

test-slurm: setup ## Run the tests on a throw-away SLURM cluster (root on a Debian-like system; installs slurm)
	AFTERIMAGE_TEST_SLURM=1 $(IN_VENV) $(BIN)/python -m pytest -n 0 tests/slurm $(PYTEST_ARGS)

check: setup ## Lint, format, types, workflow lint, drift of generated files
	$(IN_VENV) $(BIN)/ruff check .
	$(IN_VENV) $(BIN)/ruff format --check .
	$(IN_VENV) $(BIN)/mypy
	$(IN_VENV) $(BIN)/snakefmt --check Snakefile workflow
	$(IN_VENV) $(BIN)/snakemake --lint
	$(IN_VENV) $(BIN)/afterimage config schema | diff - workflow/schemas/params.schema.json
	$(IN_VENV) $(BIN)/python envs/lock.py --check

setup: ## Make the environment in VENV from LOCK, unless it is there
	@key=$$($(PYTHON) -c "$$KEY" $(LOCK) pyproject.toml) || exit 1; \
	if [ -f "$(VENV)/made-from-$$key" ]; then exit 0; fi; \
	if [ -e "$(VENV)" ] && [ ! -f "$(VENV)/pyvenv.cfg" ]; then \
		echo "VENV = $(VENV) is there but is no virtual environment; remove it or choose another" >&2; exit 1; fi; \
	echo "Making $(VENV) from $(LOCK) (once; a few minutes)" && \
	$(PYTHON) -m venv --clear "$(VENV)" && \
	"$(BIN)/python" -m pip install -qq --disable-pip-version-check -r $(LOCK) && \
	"$(BIN)/python" -m pip install -qq --disable-pip-version-check --no-build-isolation --no-deps -e . && \
	touch "$(VENV)/made-from-$$key"

ui: setup ## Show the imported runs in MLflow
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow ui --backend-store-uri sqlite:///mlflow.db --workers 1

docs: setup ## Draw docs/rulegraph.svg
	$(IN_VENV) $(BIN)/snakemake all --rulegraph dot | $(IN_VENV) $(BIN)/afterimage report rulegraph --out docs/rulegraph.svg

lock: setup ## Resolve envs/requirements.in again (LOCK_ARGS=--upgrade takes the newest of everything)
	$(IN_VENV) $(BIN)/python envs/lock.py $(LOCK_ARGS)

clean: ## Remove the environment; results stay
	@if [ -f "$(VENV)/pyvenv.cfg" ]; then rm -rf "$(VENV)"; fi

help: ## Show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
