# Two commands: `make reproduce` and `make test`. `make help` lists the rest.
VENV   ?= .venv
PYTHON ?= python3
PRESET ?=
DATA   ?=
FRESH  ?=

bin       := $(VENV)/bin
installed := $(VENV)/.installed-$(shell cksum pyproject.toml | cut -d' ' -f1)

.DEFAULT_GOAL := help
.PHONY: help reproduce report test lint lab clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

reproduce: $(installed)  ## run every notebook; PRESET=smoke|brief|lite|fast|paper, DATA=folder, FRESH=1
	$(bin)/python -m sodlib reproduce $(if $(PRESET),--preset $(PRESET)) $(if $(DATA),--data "$(DATA)") $(if $(FRESH),--fresh)

report: $(installed)  ## the executed notebooks as one site, build/report/index.html, which reads offline
	$(bin)/python -m sodlib report

test: $(installed) lint  ## check the style, then run all tests, as many files at once as there are cores
	$(bin)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

lint: $(installed)
	$(bin)/ruff check .

lab: $(installed)  ## open JupyterLab on the notebooks
	$(bin)/jupyter lab notebooks

clean:  ## remove what a run or an install has made, committed evidence excepted
	rm -rf build .venv *.egg-info .pytest_cache .ruff_cache .hypothesis

$(installed): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "sodlib needs Python 3.11 or newer; name one with PYTHON=python3.12")'
	test -x $(bin)/python || $(PYTHON) -m venv $(VENV)
	$(bin)/python -m pip install --quiet --editable '.[dev]'
	rm -f $(VENV)/.installed-*
	touch $@
