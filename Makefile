# Concrete GMVAE. `make help` lists what can be made; each target sets up what it needs first.

UV_VERSION := 0.13.9
BIN := .venv/bin
UV := VIRTUAL_ENV="$(CURDIR)/.venv" $(BIN)/uv

# The first interpreter on the path that the book runs on. Another: make book PYTHON=/path/to/python
FITS := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 15))
PYTHON ?= $(or $(shell for p in python3 python3.15 python3.14 python3.13 python3.12 python3.11; do \
	"$$p" -c '$(FITS)' 2>/dev/null && echo "$$p" && break; done),python3)

# The book and the tests run at the quick scale, without progress bars. With MPLBACKEND set, the
# kernels would draw no figures.
export CGMVAE_PRESET := quick
export TQDM_DISABLE := 1
unexport MPLBACKEND

.DEFAULT_GOAL := help
.PHONY: help fresh book test browser pdf links lab slides student times bench peers workflow table1 small half \
	newest address lock clean distclean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

# jupyter-cache keeps executed chapters and looks at the notebook alone. So all of it goes when
# the package, the results or the environment changed.
INPUTS = find cgmvae results requirements.lock -type f ! -path '*/__pycache__/*' \
	! -path 'results/unfinished/*' ! -path 'results/logs/*' -exec cksum {} +

# What was built from another package, other results or another environment goes first.
fresh: .venv/done
	@inputs="$$( (echo $(CGMVAE_PRESET); $(INPUTS)) | LC_ALL=C sort | cksum)"; \
	if [ "$$inputs" != "$$(cat _build/inputs 2>/dev/null)" ]; then \
		rm -rf _build && mkdir _build && echo "$$inputs" > _build/inputs; \
	fi

book: fresh  ## execute the chapters, side by side, build the HTML and print the page to open
	$(BIN)/python tools/execute.py
	$(BIN)/jupyter-book build . --all -W --keep-going
	@test -s _build/html/index.html || { echo "The build made no page."; exit 1; }
	@echo "The book is built. Open this page in a browser:"
	@echo "$(CURDIR)/_build/html/index.html"

# Each chapter is executed once: nbval runs its cells and leaves it executed, made anew in each call, and the
# book's build among the tests renders it. A chapter that fails does not keep the other tests from running.
CHECK = @rm -rf _build/executed; failed=0; export OMP_NUM_THREADS=1 EXECUTED=_build/executed; \
	$(1)/python -m pytest chapters || failed=1; \
	$(1)/python -m pytest tests || failed=1; \
	exit $$failed

test: .venv/done  ## run every test: every chapter, then the package, papermill and the book's build
	$(call CHECK,$(BIN))

# Both need a Chromium on the path.
browser: book .venv/browser  ## read the built book in a headless Chromium and report what is wrong
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/browser --numprocesses=0 -rs

pdf: book .venv/browser  ## print the built book as a PDF with headless Chromium
	$(BIN)/python tools/make_pdf.py

# Needs a network: the one target that asks other machines.
links: book  ## ask for every address outside that the book names, and report those that are gone
	$(BIN)/jupyter-book build . --builder linkcheck

lab: .venv/lab  ## open chapter 1 in JupyterLab, to be read and run: copies in build/chapters
	$(BIN)/python tools/readable.py
	$(BIN)/jupyter lab build/chapters/01_generative_model.ipynb

# For a class. The student copies go to build/, which no other target clears.
slides: fresh  ## the two lectures as slides that need no network: _build/slides
	$(BIN)/python tools/slides.py

student: .venv/done  ## the chapters without their solutions, with stubs and checks: build/student
	$(BIN)/python tools/student.py

times: book  ## print how long each chapter takes on this machine
	$(BIN)/python tools/times.py

bench: .venv/done  ## time a step and train to a level beside plain PyTorch and Pyro, hours of a core; saves results/benchmarks/
	$(BIN)/python benchmarks/bench.py
	$(BIN)/python benchmarks/quality.py

peers: .venv-peers/done  ## train VaDE and DEC of ClustPy on the same digits, hours of a core; saves results/peers/
	OMP_NUM_THREADS=1 .venv-peers/bin/python benchmarks/peers.py

# One job a run, through papermill, as many at a time as there are cores (JOBS=n for another number).
# A killed call goes on where it was when it is given again.
JOBS ?= all
SWEEP = .venv-workflow/bin/snakemake --snakefile workflow/Snakefile --cores $(JOBS) --rerun-incomplete \
	--keep-going --config python=$(BIN)/python

workflow: .venv-workflow/done  ## set Snakemake up, in an environment of its own

table1: workflow .venv/done  ## run what is missing of Table 1, at the paper's scale: wants a GPU
	$(SWEEP) table=table1

small: workflow .venv/done  ## the same on 20,000 training images: a laptop does it
	$(SWEEP) table=small

half: .venv/done  ## the same on all images, at most 50 epochs: for processors
	env -u TQDM_DISABLE $(BIN)/python -m cgmvae sweep half

# The environments: an interpreter's own venv, a pinned uv inside it, and a lock. Each is made once,
# and again when its lock changes. uv does not read pip's settings: where only pip knows the index,
# pip does the same, slower.
INSTALL = VIRTUAL_ENV="$(CURDIR)/$(1)" $(1)/bin/uv pip install --compile-bytecode --require-hashes -r $(2) \
	|| $(1)/bin/python -m pip install --require-hashes -r $(2)

.venv/done: requirements.lock pyproject.toml .venv/bin/uv
	$(call INSTALL,.venv,requirements.lock)
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

.venv/browser: requirements-browser.lock .venv/done
	$(call INSTALL,.venv,requirements-browser.lock)
	@touch $@

.venv/lab: requirements-lab.lock .venv/done
	$(call INSTALL,.venv,requirements-lab.lock)
	@touch $@

.venv-workflow/done: requirements-workflow.lock .venv-workflow/bin/uv
	$(call INSTALL,.venv-workflow,requirements-workflow.lock)
	@touch $@

.venv-peers/done: requirements-peers.lock pyproject.toml .venv-peers/bin/uv
	$(call INSTALL,.venv-peers,requirements-peers.lock)
	.venv-peers/bin/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

# Where no interpreter fits and none was named, a uv of any other python3 fetches one. That uv comes
# into a folder, which takes pip, or into a venv, which takes venv: an old python3 may have either.
.venv/bin/uv .venv-workflow/bin/uv .venv-peers/bin/uv .venv-newest/bin/uv:
	@venv=$(@:/bin/uv=); \
	if "$(PYTHON)" -c '$(FITS)' 2>/dev/null; then \
		"$(PYTHON)" -m venv $$venv; \
	elif test "$(origin PYTHON)" = file && { \
		test -x .venv-uv/bin/uv \
		|| python3 -m pip install --quiet --target .venv-uv uv==$(UV_VERSION) 2>/dev/null \
		|| { python3 -m venv .venv-uv && .venv-uv/bin/python -m pip install --quiet uv==$(UV_VERSION); }; \
	} 2>/dev/null && .venv-uv/bin/uv venv --seed --clear --python 3.13 $$venv; then :; else \
		echo "The book needs Python 3.11 to 3.15 with venv, and $(PYTHON) is not that: name another" \
			"with PYTHON=/path/to/python3.13, or install one." >&2; exit 1; \
	fi
	$(@D)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@touch $@

newest: .venv-newest/bin/uv  ## every test with the newest versions that pyproject.toml allows, apart from .venv
	VIRTUAL_ENV="$(CURDIR)/.venv-newest" .venv-newest/bin/uv pip install --upgrade -e '.[book,test]'
	$(call CHECK,.venv-newest/bin)

address: .venv/done  ## write the book's address, `repository: url` of _config.yml, into what must hold a copy
	$(BIN)/python tools/address.py

LOCK = $(UV) pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url

lock: .venv/bin/uv  ## write the locks anew from pyproject.toml (keeps pins that still fit)
	$(LOCK) --extra book --extra test pyproject.toml -o requirements.lock
	$(LOCK) --group browser --constraint requirements.lock -o requirements-browser.lock
	$(LOCK) --group lab --constraint requirements.lock -o requirements-lab.lock
	$(LOCK) --group workflow -o requirements-workflow.lock
	$(LOCK) --group peers --constraint requirements.lock pyproject.toml -o requirements-peers.lock

clean:  ## remove the built book and what the tests leave
	rm -rf _build .pytest_cache

distclean: clean  ## remove the environments too, so that the next call makes new ones
	rm -rf .venv .venv-* *.egg-info
