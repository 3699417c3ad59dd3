# The book's commands. Each sets up what it needs; README.md lists the same for people without make.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
PORT ?= 8000
MINIMUM := (3, 11)

# Written last: an installation that broke half-way leaves none, and is taken up again.
STAMP := $(VENV)/.installed

.PHONY: help .venv book test serve page clean constraints epub pdf linkcheck colab-check test-oldest test-newest
.DEFAULT_GOAL := help

help: ## show this list
	@echo "make <target>, where target is one of:"
	@sed -n 's/^\([a-z-]*\):.*## /  \1  /p' $(MAKEFILE_LIST) | awk '{n=$$1; $$1=""; printf "  %-12s%s\n", n, $$0}'

book: $(STAMP) ## execute the chapters and build the book into _build/html
	@$(RUN) tools/book.py build

page: $(STAMP) ## execute and build one page, e.g. make page P=08
	@test -n "$(P)" || { echo "Which page? For example: make page P=08" >&2; exit 2; }
	@$(RUN) tools/book.py page "$(P)"

serve: book ## build the book and open it in a browser (PORT=8000)
	@$(RUN) tools/book.py serve --port $(PORT)

# As many files side by side as there are cores, on one core each. Chapters run once more, as a
# reader with data would see them: the build above never uses TLHELPERS_DATA. nbval lets a dying
# kernel hang for 2000 s unless told otherwise.
test: book ## lint, then test the package, the built book and the chapters
	@echo "Checking style and types"
	@$(RUN) -m ruff check --quiet .
	@$(RUN) -m ruff format --check --quiet .
	@$(RUN) -m nbstripout --verify chapters/*.ipynb
	@$(RUN) -m mypy
	@echo "Testing the package and the built book"
	@TLHELPERS_QUIET=1 OMP_NUM_THREADS=1 \
	  $(RUN) -m pytest -n logical --dist loadfile --doctest-modules tlhelpers tests
	@echo "Running the chapters"
	@TLHELPERS_QUIET=1 TLHELPERS_CACHE="$(CURDIR)/_build/cache-nbval" OMP_NUM_THREADS=1 \
	  $(RUN) -m pytest -n logical --dist loadfile --nbval-lax --nbval-current-env --nbval-cell-timeout=300 chapters

epub: book ## write the book as _build/transfer-learning.epub
	@$(RUN) tools/ebook.py epub

pdf: book ## print the book into _build/transfer-learning.pdf (needs Chromium)
	@$(RUN) tools/ebook.py pdf

linkcheck: book ## ask every address outside of the book whether it is still there
	@$(RUN) tools/links.py

# Before a release, and weekly; each makes an environment of its own below _build.
colab-check: $(STAMP) ## run the chapters from the wheel with Colab's versions
	@$(RUN) tools/release.py colab

test-oldest: $(STAMP) ## test the package with the oldest versions that it admits
	@$(RUN) tools/release.py oldest

test-newest: $(STAMP) ## test the package with the newest versions
	@$(RUN) tools/release.py newest

clean: ## remove what was built; .venv stays (rm -rf .venv starts it anew)
	rm -rf _build

.venv: $(STAMP) ## make the environment that the other targets use

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || \
	  { echo "Python 3.11 or newer is needed, and $(PYTHON) was not found." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= $(MINIMUM) else "Python 3.11 or newer is needed; $(PYTHON) is %s. Name another one: make PYTHON=python3.13 book" % sys.version.split()[0])'
	@echo "Setting up $(VENV): PyTorch and the book's tools, about 6 GB on Linux; a few minutes."
	@$(RUN) -c 'import sys; sys.exit(sys.version_info < $(MINIMUM))' 2>/dev/null || \
	  $(PYTHON) -m venv --clear $(VENV)
	@$(RUN) -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[book,test]"
	@touch $@
	@echo "Set up."

constraints: ## resolve all versions anew and rewrite constraints.txt
	$(PYTHON) -m venv --clear _build/fresh
	_build/fresh/bin/python -m pip install --quiet -e ".[book,test]"
	grep '^#' constraints.txt > _build/constraints.txt
	_build/fresh/bin/python -m pip freeze --exclude-editable \
	  | grep -Ev '^(nvidia-|cuda-|triton)' | sed 's/+[a-z0-9.]*$$//' >> _build/constraints.txt
	mv _build/constraints.txt constraints.txt
	rm -rf _build/fresh
