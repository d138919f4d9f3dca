# Concrete GMVAE. `make help` lists what can be made; each target sets up what it needs first.

UV_VERSION := 0.13.9
BIN := .venv/bin
UV := VIRTUAL_ENV="$(CURDIR)/.venv" $(BIN)/uv

# The first interpreter on the path that the book runs on. Another: make book PYTHON=/path/to/python
FITS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(or $(shell for p in python3 python3.13 python3.12 python3.11; do \
	"$$p" -c '$(FITS)' 2>/dev/null && echo "$$p" && break; done),python3)

# The book and the tests run at the quick scale, without progress bars. With MPLBACKEND set, the
# kernels would draw no figures.
export CGMVAE_PRESET := quick
export TQDM_DISABLE := 1
unexport MPLBACKEND

.DEFAULT_GOAL := help
.PHONY: help fresh book test browser pdf slides student times bench table1 small lock clean distclean

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

book: fresh  ## execute every chapter, build the HTML and print the page to open
	$(BIN)/jupyter-book build . --all -W --keep-going
	@test -s _build/html/index.html || { echo "The build made no page."; exit 1; }
	@echo "The book is built. Open this page in a browser:"
	@echo "$(CURDIR)/_build/html/index.html"

test: .venv/done  ## run every test: the package, every chapter, papermill, the book's build
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

# Both need a Chromium on the path.
browser: book  ## read the built book in a headless Chromium and report what is wrong
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/browser --numprocesses=0 -rs

pdf: book  ## print the built book as a PDF with headless Chromium
	$(BIN)/python tools/make_pdf.py

# For a class. The student copies go to build/, which no other target clears.
slides: fresh  ## the 90-minute lecture as slides that need no network: _build/slides
	$(BIN)/python tools/slides.py

student: .venv/done  ## the chapters without their solutions, with stubs and checks: build/student
	$(BIN)/python tools/student.py

times: book  ## print how long each chapter takes on this machine
	$(BIN)/python tools/times.py

bench: .venv/done  ## time a step beside plain PyTorch and Pyro; saves results/benchmarks/
	$(BIN)/python benchmarks/bench.py

# One job a run, through papermill, as many at a time as there are cores (JOBS=n for another number).
# A killed call goes on where it was when it is given again.
JOBS ?= all
SWEEP = $(BIN)/snakemake --snakefile workflow/Snakefile --cores $(JOBS) --rerun-incomplete --keep-going

table1: .venv/done  ## run what is missing of Table 1, at the paper's scale: wants a GPU
	$(SWEEP) --config table=table1

small: .venv/done  ## the same on 20,000 training images: under an hour on two cores
	$(SWEEP) --config table=small

# The environment: the interpreter's own venv, a pinned uv inside it, and the lock. Done once, and
# again when the lock or pyproject.toml changes. uv does not read pip's settings: where only pip
# knows the index, pip does the same, slower.
.venv/done: requirements.lock pyproject.toml $(BIN)/uv
	$(UV) pip install --compile-bytecode --require-hashes -r requirements.lock \
		|| $(BIN)/python -m pip install --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

$(BIN)/uv:
	@"$(PYTHON)" -c 'import sys; v = sys.version_info; (3, 11) <= v[:2] <= (3, 13) or sys.exit( \
		"The book needs Python 3.11, 3.12 or 3.13, and $(PYTHON) is %d.%d: name another " \
		"with PYTHON=/path/to/python3.12." % v[:2])'
	"$(PYTHON)" -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@touch $@

lock: $(BIN)/uv  ## write requirements.lock anew from pyproject.toml (keeps pins that still fit)
	$(UV) pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--extra book --extra test pyproject.toml -o requirements.lock

clean:  ## remove the built book and what the tests leave
	rm -rf _build .pytest_cache

distclean: clean  ## remove the environment too, so that the next call makes a new one
	rm -rf .venv *.egg-info
