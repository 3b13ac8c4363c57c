# Sets up .venv and runs the demo, the tests and the checks. `make` lists the targets.
#
# Each set-up step leaves a stamp in .venv once all of it is done: a later run skips it, and a run
# after an interruption or a failure goes on with the first step that has no stamp.

PYTHON ?= python3
ifeq ($(origin CXX),default)
CXX := c++
endif
export CXX

# One file of versions for every pip call; a relative path, for pip splits this value at spaces.
export PIP_CONSTRAINT := constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1
export PIP_PROGRESS_BAR := off

PY := .venv/bin/python
INSTALL := $(PY) -m pip install --no-build-isolation
EXTRAS := timm,demo,export,dev
CSRC := fsn_d2/layers/csrc
LINTED := fsn_d2 tools benchmarks train_net.py
SUPPORTED := import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 14))
CXX_PROBE := echo 'int main() { if constexpr (true) return 0; }' | $(CXX) -std=c++17 -x c++ -

# The stamps name the checkout: an environment does not survive a move, its scripts hold its path.
STAMPS := .venv/.stamps/$(firstword $(shell pwd -P | cksum))
LOGS := build/logs
LOG = $(LOGS)/$(@F).log

# Stamps whose result has gone (the interpreter, the built library) do not count.
$(shell $(PY) -c pass 2>/dev/null || rm -rf .venv/.stamps)
ifeq ($(FSN_D2_NO_EXTENSION)$(wildcard fsn_d2/_C.*so),)
$(shell rm -f $(STAMPS)/extension)
endif

# $(call require,command,message): one line and the end where the command fails.
require = @{ $(1); } >/dev/null 2>&1 || { echo "error: $(2)" >&2; exit 1; }

# $(call step,command): says the target's SAY, keeps the command's output in a log, and ends with
# the target's ELSE or with a stamp.
define step
@echo "$(SAY)"; mkdir -p $(LOGS)
@{ $(1); } >$(LOG) 2>&1 || { echo "error: $(ELSE) (details: $(LOG))" >&2; exit 1; }
@mkdir -p $(@D) && touch $@
endef

# A pip that was stopped leaves metadata without INSTALLER, which it writes near the end, and
# folders named ~something. With both gone it installs the package anew.
define repair
for d in .venv/lib/python*/site-packages/*.dist-info; do \
	test -e "$$d/INSTALLER" || rm -rf "$$d"; \
done; rm -rf .venv/lib/python*/site-packages/~*
endef

DOWNLOAD_FAILED = a download or an installation failed: check the network, then run make again

.DEFAULT_GOAL := help
.NOTPARALLEL:
.SUFFIXES:
.PHONY: help setup venv demo test test-slow lint format docs clean

help: ## list the targets
	@echo "make TARGET [PYTHON=python3.12] [CXX=g++] [FSN_D2_NO_EXTENSION=1]"
	@sed -n 's/^\([a-z-]*\):.*## /\1: /p' Makefile | while IFS=: read -r name text; do \
		printf '  %-10s%s\n' "$$name" "$$text"; done

venv: setup ## the same as setup

setup: $(STAMPS)/imports ## make .venv complete (the other targets do it themselves)

demo: setup ## train and evaluate on a small data set, and show the result
	@$(PY) tools/demo_quickstart.py

test: lint ## the checks of lint, then the fast tests
	@$(PY) -m pytest -m "not slow"

test-slow: setup ## the tests that take minutes
	@$(PY) -m pytest -m slow -o timeout=3600

lint: setup ## check style, types and C++ format
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy $(LINTED)
	@find $(CSRC) -type f -exec .venv/bin/clang-format --dry-run -Werror {} +

format: setup ## rewrite the sources in the project's style
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .
	@find $(CSRC) -type f -exec .venv/bin/clang-format -i {} +

docs: setup ## write docs/api.md from the docstrings
	@$(PY) tools/api_reference.py

clean: ## remove what was built and the tools' caches (not .venv, not output)
	@rm -rf build dist fsn_d2.egg-info fsn_d2/_C*.so .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMPS)/venv: SAY = [1/6] the environment .venv
$(STAMPS)/venv: ELSE = .venv could not be made: check the network and that this folder can be written, then run make again
$(STAMPS)/venv:
	$(call require,$(PYTHON) -c "$(SUPPORTED)",'$(PYTHON)' is not Python 3.10 to 3.14: name one as in make PYTHON=python3.12 $(MAKECMDGOALS))
	$(call require,$(PYTHON) -c "import ensurepip$(,) venv",'$(PYTHON)' has no venv module: install it (Debian: apt-get install python3-venv)$(,) then run make again)
	$(call require,$(IF_BY_HAND) $(PY) -c "$(SUPPORTED)"; fi,the .venv here is not make's and has no Python 3.10 to 3.14: move it away$(,) then run make again)
	$(call require,$(IF_BY_HAND) $(PY) -c "import pip" || $(PY) -m ensurepip; fi,the .venv here has no pip: install pip into it (uv: uv pip install pip)$(,) then run make again)
	$(require_compiler)
	$(call step,$(make_venv) && $(PY) -m pip install --upgrade pip setuptools wheel)

# A .venv made by hand is never removed: it serves, or it is for its owner to move. One that make
# began and did not complete starts afresh.
IF_BY_HAND = if test -e .venv && ! test -e .venv/.made-by-make; then
define make_venv
$(IF_BY_HAND) :; else \
	rm -rf .venv && mkdir .venv && touch .venv/.made-by-make && $(PYTHON) -m venv .venv; \
fi
endef

ifeq ($(FSN_D2_NO_EXTENSION),)
define require_compiler
$(call require,$(CXX_PROBE) -fsyntax-only,'$(CXX)' is no C++17 compiler: install one (Debian: apt-get install g++)$(,) name one as in make CXX=clang++$(,) or do without by FSN_D2_NO_EXTENSION=1)
endef
endif

$(STAMPS)/torch: SAY = [2/6] torch and torchvision (several minutes, about 3 GB to download)
$(STAMPS)/torch: ELSE = $(DOWNLOAD_FAILED)
$(STAMPS)/torch: $(STAMPS)/venv constraints.txt
	$(call step,$(repair); $(INSTALL) setuptools wheel torch torchvision)

# The package itself is installed here too, without its library, to leave its dependencies to pip.
$(STAMPS)/packages: SAY = [3/6] the other packages
$(STAMPS)/packages: ELSE = $(DOWNLOAD_FAILED)
$(STAMPS)/packages: $(STAMPS)/torch pyproject.toml
	$(call step,$(repair); FSN_D2_NO_EXTENSION=1 $(INSTALL) -e ".[$(EXTRAS)]")

$(STAMPS)/detectron2: SAY = [4/6] Detectron2
$(STAMPS)/detectron2: ELSE = Detectron2 was not installed: check the network$(,) then run make again
$(STAMPS)/detectron2: $(STAMPS)/packages tools/install_detectron2.py
	$(call step,$(repair); $(PY) tools/install_detectron2.py)
	@tail -n 1 $(LOG)

$(STAMPS)/extension: SAY = [5/6] the compiled extension
$(STAMPS)/extension: ELSE = the extension does not build: see the compiler's message$(,) or do without by FSN_D2_NO_EXTENSION=1
$(STAMPS)/extension: $(STAMPS)/detectron2 setup.py $(wildcard $(CSRC)/* $(CSRC)/*/*)
	$(require_compiler)
	$(call step,$(repair); $(INSTALL) --no-deps -e .)

$(STAMPS)/imports: SAY = [6/6] a first import
$(STAMPS)/imports: ELSE = an installed package does not import: a system library may be missing (OpenCV on Debian: apt-get install libgl1 libglib2.0-0)
$(STAMPS)/imports: $(STAMPS)/extension
	$(call step,$(PY) -c "import cv2$(,) detectron2.engine$(,) pycocotools.mask$(,) torchvision")

, := ,
