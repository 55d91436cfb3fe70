# Everything a reader or contributor types. `make` alone lists it.
VENV  ?= .venv
PY    := $(CURDIR)/$(VENV)/bin/python
MIN   := $(shell sed -n 's/^min_python *= *//p' settings.ini)
READY := $(VENV)/ready
TESTS ?= tests
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# Threads that wait should soon sleep: where another program takes a core, long spinning makes small networks many times slower.
export GOMP_SPINCOUNT ?= 3000

help:  ## list the commands
	@sed -n 's/^\([a-z]*\):.*## */  make \1	/p' $(MAKEFILE_LIST)

lab: $(READY)  ## read and run the book in JupyterLab
	@echo "JupyterLab opens on the table of contents, nbs/index.ipynb. Stop it here with Ctrl-C."
	@$(PY) -m jupyterlab nbs/index.ipynb $(if $(filter 0,$(shell id -u)),--allow-root) $(LAB)

quickstart: $(READY)  ## train the digits here, score them and look: minutes (runs/quickstart; the same command goes on)
	@$(PY) -m imm_edu.cli train digits --out runs/quickstart
	@$(PY) -m imm_edu.cli eval runs/quickstart
	@echo "Look at runs/quickstart/samples.png. The chapter behind it is nbs/21_digits.ipynb: make lab, then open it there."

cifar: $(READY)  ## train CIFAR-10 on this machine, score it, add a row to the board (ARGS="--minutes 10"; the same command goes on)
	@$(PY) -m imm_edu.cli cifar $(ARGS)
	@$(PY) tests/house.py board

bench: $(READY)  ## measure training and sampling against a plain version (runs/bench; ARGS="--seconds 60 --compile" for more)
	@$(PY) -m imm_edu.bench --all --out runs/bench $(ARGS)

test: $(READY)  ## run every notebook and every test (FLAGS="slow hub" adds flagged cells)
	@FLAGS="$(FLAGS)" $(PY) -m pytest -q $(TESTS) $(PYTEST)

browser: $(READY)  ## the site and every chapter in a real browser (FLAGS=slow: those that train too; needs chromium and `pip install playwright`)
	@command -v chromium google-chrome chrome >/dev/null || { echo "No browser here: install chromium (apt install chromium, brew install chromium), then try again."; exit 1; }
	@$(PY) -c "import playwright" 2>/dev/null || { echo "Playwright is missing: $(PY) -m pip install playwright, then try again (no download of its browsers is needed)."; exit 1; }
	@BROWSER=1 FLAGS="$(FLAGS)" $(PY) -m pytest -q tests/browser $(PYTEST)

test-browser: browser

check: $(READY)  ## seconds: export drift, clean notebooks, import order, size budget
	@$(PY) -m pytest -q tests/test_house.py

oldest:  ## the library's quick tests on the oldest torch that settings.ini allows (.venv-oldest, several GB)
	@$(MAKE) --no-print-directory test VENV=.venv-oldest LOCK="$(OLDEST)" TESTS="$(QUICK:%=tests/test_%.py)"

mutants: $(READY)  ## plant known bugs one by one and see who notices (minutes)
	@$(PY) tests/mutants.py $(ARGS)

run: $(READY)  ## run chapters and keep their outputs (NB=nbs/01_flow.ipynb for one)
	@$(PY) tests/house.py run $(NB)

tidy: $(READY)  ## clean the notebooks of what an editor left, so that differences show only what a person changed
	@nbdev_clean
	@$(PY) tests/house.py metadata

docs: $(READY)  ## build the book as a site into _site/, no server needed (GIT_URL=https://github.com/... adds doors to Colab and Kaggle)
	@$(PY) -c 'import importlib as i; [i.import_module(n) for n in ("sphinx", "myst_nb", "furo", "sphinx_copybutton", "sphinx-mathjax-offline")]' 2>/dev/null || { \
	   echo "Installing what builds the site: docs_requirements of settings.ini, about a minute the first time."; \
	   $(PIP) -q $(LOCK) --editable '.[docs]' || { echo "The install did not finish: see the message above, then run make docs again."; exit 1; }; }
	@GIT_URL="$(GIT_URL)" $(PY) nbs/site/build.py

hooks: $(READY)  ## nbdev's git hooks, and `make check` before each commit
	@nbdev_install_hooks
	@printf '#!/bin/sh\nexec make check\n' > "$$(git rev-parse --git-path hooks)/pre-commit"
	@chmod +x "$$(git rev-parse --git-path hooks)/pre-commit"
	@echo "Hooks installed: notebooks merge cleanly, and make check runs before each commit."

lock:  ## resolve the newest versions into requirements.lock (minutes; needs the network)
	@rm -rf .venv-lock
	@$(MAKE) --no-print-directory .venv-lock/ready VENV=.venv-lock LOCK=
	@.venv-lock/bin/python -m pip freeze --all --exclude-editable --exclude pip > requirements.lock.new
	@if grep -n '://' requirements.lock.new; then echo "The lines above carry an address; requirements.lock is left as it was."; exit 1; fi
	@mv requirements.lock.new requirements.lock && rm -rf .venv-lock
	@echo "requirements.lock is new: $$(wc -l < requirements.lock) packages. Run make test before committing it."

OLDEST := $(shell sed -n '/^requirements/s/.*torch>=\([^ ]*\) torchvision>=\([^ ]*\) .*/torch==\1.* torchvision==\2.*/p' settings.ini)
QUICK  := exact flow mmd precond mlp dit unet objective sample step

# One environment serves every command. `ready` is written last, so an interrupted install starts again.
# Where uv is on the PATH it installs, several times faster than pip and the same packages; `make UV= test` is pip's way.
LOCK := -c requirements.lock
UV   ?= $(shell command -v uv 2>/dev/null)
PIP  := $(if $(UV),$(UV) pip install --python $(PY),$(PY) -m pip install --disable-pip-version-check)
PYTHONS := $(PYTHON) python3 python3.13 python3.12 python3.11 python
$(READY): requirements.lock settings.ini setup.py
	@for p in $(PYTHONS); do \
	   $$p -c 'import sys; sys.exit(sys.version_info < tuple(map(int, "$(MIN)".split("."))))' 2>/dev/null && python=$$p && break; done; \
	 if [ -z "$$python" ]; then \
	   echo "imm_edu needs Python $(MIN) or newer, and found none: install it (python.org, apt install python3, brew install python) or say where it is: make PYTHON=/path/to/python3"; exit 1; fi; \
	 if ! $$python -c 'import venv, ensurepip' 2>/dev/null; then \
	   echo "$$python cannot make virtual environments: install its venv module (Debian and Ubuntu: apt install python3-venv), then try again"; exit 1; fi; \
	 echo "Making $(VENV) with $$($$python --version) $(if $(LOCK),$(if $(findstring lock,$(LOCK)),from requirements.lock,with $(LOCK)),with the newest packages): a few minutes and up to 7 GB the first time, seconds from then on."; \
	 $$python -m venv $(VENV)
	@test -t 1 || quiet=--quiet; $(PIP) $$quiet $(LOCK) --editable '.[dev]' \
	 || { echo "The install did not finish: see the message above (no network? disk full?). Run the same command again to go on.$(if $(UV), Or without uv (it does not read pip's settings): make UV= $(MAKECMDGOALS))"; exit 1; }
	@$(PY) -m jupyter labextension disable "@jupyterlab/apputils-extension:announcements" >/dev/null 2>&1 || true   # a pop-up over the first page
	@$(PY) tests/house.py kernel
	@touch $@ && echo "$(VENV) is ready."

.PHONY: help lab quickstart bench test browser test-browser check oldest mutants run tidy docs hooks lock
