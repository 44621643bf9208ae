# `make all` runs the default study, `make test` the tests. Both first make the environment, once, from a lock.

PYTHON ?= python3
VENV   ?= .venv
LOCK   ?= envs/cpu.lock
CORES  ?= all
PYTEST_ARGS ?=
LOCK_ARGS   ?=
# The study whose results README shows.
README_STUDY := digits

BIN := $(abspath $(VENV))/bin
# Snakemake's jobs and DVC's stages call `afterimage` and `snakemake` by name. PATH is set for them alone: PYTHON is looked up in
# the user's own, never in the environment that it is to make.
IN_VENV := PATH="$(BIN):$$PATH"
export AFTERIMAGE_LOCK := $(abspath $(LOCK))
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := true
export DVC_NO_ANALYTICS := 1
export HF_HUB_DISABLE_TELEMETRY := 1
# Containers set this for images that import once. Here hundreds of processes import torch, and compiling it takes longer than running
# it: the first one keeps what it compiled.
unexport PYTHONDONTWRITEBYTECODE

# Compiles what the steps import, once: of the jobs that start together in a new environment each would do it, and every job where they
# may not write there.
define IMPORT_STEPS
from importlib import import_module
from afterimage.engines.patches import defer_imports
from afterimage.plan.jobs import STEPS
defer_imports()
for step in STEPS.values():
    import_module(step.module)
endef
export IMPORT_STEPS

# What the environment is made from. This is stored in it, and where it differs the environment is made again.
MADE_FROM = $$($(PYTHON) -c 'import sys; print(sys.version, sys.base_prefix)'; pwd -P; cat "$(LOCK)" pyproject.toml)

COMPILE := env -u UV_TORCH_BACKEND UV_INDEX= UV_FIND_LINKS= envs/uv.sh "$(VENV)" pip compile --quiet --universal --python-version 3.11 \
	--annotation-style line --custom-compile-command "make lock" --extra workflow --group dev pyproject.toml

.PHONY: all test test-slurm test-gpu check ui docs generate lock clean help setup

all: setup ## Run the default study (params.yaml) from raw data to report
	$(IN_VENV) $(BIN)/snakemake --cores $(CORES) all

# pytest's status is 2 when it is interrupted, 5 when PYTEST_ARGS chooses no test: one of the two kinds may have none, not both.
test: setup ## Run the tests (PYTEST_ARGS="-k seeds" chooses), two files at a time: the fast ones, then whole studies
	@export $(IN_VENV) OMP_NUM_THREADS=1; fast=0; slow=0; \
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow" $(PYTEST_ARGS) || fast=$$?; \
	[ $$fast != 2 ] || exit 2; \
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow $(PYTEST_ARGS) || slow=$$?; \
	case $$fast$$slow in 00|05|50) ;; 55) echo "PYTEST_ARGS chooses no test" >&2; exit 5 ;; *) exit 1 ;; esac

test-slurm: setup ## Run the tests on a throw-away SLURM cluster (root on a Debian-like system; installs slurm)
	AFTERIMAGE_TEST_SLURM=1 $(IN_VENV) $(BIN)/python -m pytest -n 0 tests/slurm $(PYTEST_ARGS)

test-gpu: setup ## Run the tests that need a GPU (LOCK=envs/gpu.lock)
	$(IN_VENV) $(BIN)/python -m pytest -n 0 -m gpu tests/gpu $(PYTEST_ARGS)

check: setup ## Lint, format, types, workflow lint, drift of generated files
	$(IN_VENV) $(BIN)/ruff check .
	$(IN_VENV) $(BIN)/ruff format --check .
	$(IN_VENV) $(BIN)/mypy
	$(IN_VENV) $(BIN)/snakefmt --check Snakefile workflow
	$(IN_VENV) $(BIN)/snakemake --lint
	$(IN_VENV) $(BIN)/afterimage config schema | diff - workflow/schemas/params.schema.json
	$(IN_VENV) $(BIN)/python -m afterimage.standalone.record | diff - src/afterimage/standalone/audit.schema.json
	$(BIN)/uv pip check --python $(BIN)/python

setup: ## Make the environment in VENV from LOCK, unless it is there
	@$(PYTHON) -c 'import sys; (3, 11) <= sys.version_info[:2] <= (3, 13) or sys.exit("PYTHON is Python %d.%d, but" \
		" Python 3.11, 3.12 or 3.13 is needed: make PYTHON=python3.12 ..." % sys.version_info[:2])'
	@if [ ! -f "$(LOCK)" ]; then \
		echo "LOCK = $(LOCK) is not a file; envs/cpu.lock and envs/gpu.lock are" >&2; exit 1; fi
	@made_from="$(MADE_FROM)"; \
	if [ -f "$(VENV)/made-from" ] && [ "$$made_from" = "$$(cat "$(VENV)/made-from")" ]; then exit 0; fi; \
	if [ -e "$(VENV)" ] && [ ! -f "$(VENV)/pyvenv.cfg" ]; then \
		echo "VENV = $(VENV) is there but is no virtual environment; remove it or choose another" >&2; exit 1; fi; \
	echo "Making $(VENV) from $(LOCK) (once)" && \
	$(PYTHON) -m venv --clear "$(VENV)" && \
	"$(BIN)/pip" install -qq --disable-pip-version-check -c "$(LOCK)" uv && \
	envs/uv.sh "$(VENV)" pip install --quiet -r "$(LOCK)" && \
	envs/uv.sh "$(VENV)" pip install --quiet --no-build-isolation --no-deps -e . && \
	"$(BIN)/python" -c "$$IMPORT_STEPS" && \
	printf '%s\n' "$$made_from" > "$(VENV)/made-from"

ui: setup ## Show the imported runs in MLflow
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow ui --backend-store-uri sqlite:///mlflow.db --workers 1

docs: setup ## Draw docs/rulegraph.svg
	$(IN_VENV) $(BIN)/snakemake all --rulegraph dot | $(IN_VENV) $(BIN)/afterimage report rulegraph --out docs/rulegraph.svg

generate: setup ## Write what follows from the code and from tables in git: schemas, dvc.yaml's keys, docs/results, README's results
	$(IN_VENV) $(BIN)/afterimage config schema > workflow/schemas/params.schema.json
	$(IN_VENV) $(BIN)/python -m afterimage.standalone.record > src/afterimage/standalone/audit.schema.json
	$(IN_VENV) $(BIN)/afterimage config dvc
	@for run in $$(git ls-files 'results/*/report/tables/run.json'); do \
		study=$${run#results/} && study=$${study%%/*} && readme= && \
		if [ "$$study" = "$(README_STUDY)" ]; then readme="--readme README.md"; fi && \
		$(IN_VENV) $(BIN)/afterimage report document --tables "$${run%/run.json}" --out "docs/results/$$study.md" $$readme || exit 1; \
	done

lock: setup ## Resolve pyproject.toml into the locks again (LOCK_ARGS=--upgrade takes the newest of everything)
	$(COMPILE) --group gpu --overrides envs/gpu.overrides --output-file envs/gpu.lock $(LOCK_ARGS)
	cp envs/gpu.lock envs/cpu.lock # the versions that the second resolution keeps
	$(COMPILE) --overrides envs/cpu.overrides --output-file envs/cpu.lock

clean: ## Remove the environment; results stay
	@if [ -f "$(VENV)/pyvenv.cfg" ]; then rm -rf "$(VENV)"; fi

help: ## Show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
