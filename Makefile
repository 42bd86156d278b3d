# Two commands do everything on a fresh machine: `make train` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA := data/synthetic
CONFIG ?= configs/quickstart.yaml
# A process a GPU; on a processor, one for each of two cores, which is faster than one with two threads.
NPROC ?= $(if $(shell nvidia-smi -L 2> /dev/null),1,2)

.PHONY: train test lint docs install data clean

train: install data
	$(BIN)/torchrun --standalone --nproc_per_node=$(NPROC) train/run.py --config $(CONFIG)

# Two processes share the files of tests; more would measure each other.
test: $(VENV)/test.done lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/test.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/test.done
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

install: $(VENV)/train.done

data: install
	$(BIN)/python -m pipelines.synthetic $(DATA)

# torch comes first and by its exact version: what depends on it then finds it there.
$(VENV)/train.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q $$(grep '^torch==' constraints.txt)
	$(BIN)/pip install -q -c constraints.txt -e .
	touch $@

$(VENV)/test.done: $(VENV)/train.done
	$(BIN)/pip install -q -c constraints.txt -e .[test]
	touch $@

clean:
	rm -rf $(VENV) *.egg-info
