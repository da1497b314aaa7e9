PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3; do command -v $$name && break; done)
VENV := .venv
BIN := $(VENV)/bin
# Of the first `make env` alone; for others afterwards `make clean` first.
# For example: make env PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PIP_FLAGS ?=

# Programs that tests drive. Debian's packages are called like them.
TOOLS := curl openssl nginx haproxy prometheus chromium npm
APT := $(if $(filter-out 0,$(shell id -u)),sudo) env DEBIAN_FRONTEND=noninteractive apt-get
# $(call need,PROGRAM...) installs what is missing. The lists first: a fresh machine has none.
need = missing=$$(for tool in $(1); do PATH="$$PATH:/usr/sbin" command -v $$tool >/dev/null || echo $$tool; done); \
	[ -z "$$missing" ] || { $(APT) update -qq && $(APT) install -y --no-install-recommends $$missing; }

.PHONY: help env env-train env-ray env-tools bench-env bench-check serve test test-all test-gpu lint proto docs train lock clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

env: $(VENV)/.stamp ## make .venv from requirements.lock

$(VENV)/.stamp: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

env-train: env ## add what training needs: synthetic voices, Whisper tiny.en, flite
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock -r requirements-train.lock
	$(call need,flite)

env-ray: env ## add Ray Serve
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock -r requirements-ray.lock

env-tools: ## install the programs that tests drive, with apt-get
	$(call need,$(TOOLS))

BENCH_ENVS := build/bench-env
bench-env: env $(BENCH_ENVS)/llamacpp/.stamp $(BENCH_ENVS)/vllm/.stamp ## add what the benchmarks need: LitServe; llama.cpp and vLLM in build/bench-env
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock -r requirements-bench.lock

bench-check: bench-env ## measure every target on the CPU, a line each; fails where one is missed or not measured
	$(BIN)/python -m benchmarks.check

$(BENCH_ENVS)/%/.stamp: requirements-bench-%.lock
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --disable-pip-version-check $(PIP_FLAGS) --no-deps -r $<
	touch $@

TRAIN ?= --recipe cpu
train: env-train ## train the embedded default into training/state/model (TRAIN="--recipe gpu --device cuda")
	$(BIN)/python -m training all training/state/model $(TRAIN)

lock: ## pin what is installed now into requirements.lock
	mkdir -p build
	sed '/^#/d' requirements-train.lock requirements-ray.lock requirements-bench.lock | grep -vixFf requirements.lock > build/extras.lock
	(sed -n '/^#/p' requirements.lock; \
	  $(BIN)/pip freeze --all --exclude-editable | grep -v '^pip==' | grep -vixFf build/extras.lock | sed 's/+cpu$$//') > requirements.lock.new
	mv requirements.lock.new requirements.lock

serve: env ## serve the embedded default: REST on 8000, gRPC on 50051
	$(BIN)/wavllm serve

lint: env ## ruff, mypy --strict, import-linter, generated stubs, hadolint
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy examples
	$(BIN)/lint-imports
	$(BIN)/python -m server.proto_gen --check
	$(BIN)/hadolint Dockerfile

proto: env ## write server/pb from proto/
	$(BIN)/python -m server.proto_gen

docs: env ## write docs/api.md from /openapi.json and the proto
	$(BIN)/python -m server.docs_gen

# Files in the order of collection, for those that take longest come first.
SPREAD := -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
test: env lint ## the default checks and tests, under 10 minutes
	$(BIN)/pytest $(SPREAD)

test-all: env-train env-ray env-tools bench-env lint ## every test that needs no GPU
	$(BIN)/pytest -m 'not gpu and not slow' --no-skips $(SPREAD)
	$(BIN)/pytest -m slow --no-skips

test-gpu: env ## the tests that need a CUDA device
	$(BIN)/pytest -m gpu --no-header -rA

clean: ## remove the environment and caches
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache .hypothesis
