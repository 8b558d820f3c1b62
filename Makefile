# `make` lists what can be made. Needed: make and Python 3.11 or newer; everything else is installed into .venv, by plain pip.

VENV = .venv
PY = $(VENV)/bin/python
EXTRA = cpu
DATA = mnist
JOBS = 2

quoted = '$(subst ','\'',$(1))'
ifneq ($(filter train,$(MAKECMDGOALS)),)
# The store's rule for names: what DATA is called without folders and .npy or .npz, in lower case, the rest made hyphens.
NAME := $(shell printf '%s\n' $(call quoted,$(DATA)) | LC_ALL=C sed 's:/*$$::; s:.*/::; s/\.np[yz]$$//' \
  | LC_ALL=C tr A-Z a-z | LC_ALL=C sed 's/[^a-z0-9_.-]/-/g; s/^[^a-z0-9]*//' | cut -c 1-64)
ifeq ($(shell printf '%s\n' $(call quoted,$(NAME)) | LC_ALL=C grep -Ex '[a-z0-9][a-z0-9_.-]{0,63}'),)
$(error NAME=$(NAME) is no name for a model: say NAME= and up to 64 of a-z, 0-9, _, . and -, a letter or digit first)
endif
endif

ifeq ($(filter $(EXTRA),cpu gpu),)
$(error EXTRA=$(EXTRA) is not a runtime: say cpu or gpu)
endif
# The two packages own the same files, so one always gives way to the other.
other_runtime = $(if $(filter gpu,$(EXTRA)),onnxruntime,onnxruntime-gpu)

# What is installed, to the byte: see requirements/lock.py.
locks := $(wildcard requirements/*.txt)

# ONNX Runtime reports its use to Microsoft unless told not to before it starts.
export ORT_DISABLE_TELEMETRY ?= 1
# Bytecode is kept: the tests start some hundred processes, each of which would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help serve test types tests coverage format train audit lock check-deploy image again

help:
	@echo 'make serve    the service on http://127.0.0.1:8000    (PORT=9000 another port, EXTRA=gpu with CUDA)'
	@echo 'make test     every check: format, lint, types, tests    (JOBS=4 as many at a time; EXTRA=gpu with CUDA)'
	@echo 'make coverage the tests again, which take twice as long then, and the lines that none of them reaches'
	@echo 'make format   formats the code and mends what the linter can'
	@echo 'make train    a model of MNIST, into the store    (DATA=folder or file, NAME=of the model, SIZE=64x48, MINUTES=60; cut short, it goes on)'
	@echo 'make audit    looks up what is known against the pinned versions    (ADVISORIES=file or folder of OSV records: offline)'
	@echo 'make lock     writes requirements/ anew, after a change of pyproject.toml or constraints.txt'
	@echo 'make check-deploy CRDS=folder   checks deploy/ as docs/kubernetes.md says    (HELM=program)'
	@echo 'make image    the container image, labelled with version and revision    (EXTRA=gpu with CUDA, SOURCE=address of the repository)'
	@echo 'The first time, each installs what it needs into $(VENV)    (PYTHON=/path/to/python3 to choose one)'

serve: $(VENV)/ready-$(EXTRA)
	@$(if $(PORT),LOGPX_PORT=$(PORT)) exec $(PY) -m service

test: $(VENV)/ready-$(EXTRA)-all
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	@$(MAKE) --no-print-directory --jobs=2 types tests

# At once: mypy has one thread, and would keep the other cores waiting for a minute in a fresh clone.
types: $(VENV)/ready-$(EXTRA)-all
	$(PY) -m mypy

# The browser's tests are a run of their own: Playwright leaves an event loop running, in which asyncio.run fails.
tests: $(VENV)/ready-$(EXTRA)-all
	$(PY) -m pytest --numprocesses=$(JOBS) --dist=worksteal --ignore=tests/page
	$(PY) -m pytest tests/page

# Apart from the checks, for nothing of it fails: before Python 3.14 counting lines makes each line of Python twice as slow.
coverage: $(VENV)/ready-$(EXTRA)-all
	$(PY) -m pytest --cov --numprocesses=$(JOBS) --dist=worksteal

format: $(VENV)/ready-$(EXTRA)-all
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

# A run that was begun goes on with its own options. Else files may have images of any size, unless SIZE says more.
begun = $(wildcard runs/$(NAME)/run.json)
has_files = $(shell test -d $(call quoted,$(DATA)) && echo yes || \
  case $(call quoted,$(DATA)) in (*.zip|*.tar|*.tar.gz|*.tgz|*.tar.xz|*.tar.bz2|*.csv|*.tsv) echo yes;; esac)
size = $(if $(filter undefined,$(origin SIZE)),$(if $(begun),,$(if $(has_files),auto)),$(SIZE))

train: $(VENV)/ready-$(EXTRA)-all
	$(PY) -m training fit --data $(call quoted,$(DATA)) --out runs/$(NAME) $(if $(size),--size $(call quoted,$(size)) )$(if $(begun),--resume,$(if $(MINUTES),--minutes $(call quoted,$(MINUTES))))
	$(PY) -m training publish runs/$(NAME) --name $(NAME)

# --strict: what could not be looked up fails the audit too. Without markers: what other systems install is looked up as well.
audit: $(VENV)/audit/ready
ifdef ADVISORIES
	$(VENV)/audit/bin/python requirements/audit.py $(call quoted,$(ADVISORIES)) $(locks)
else
	@rm -rf $(VENV)/audit/locks && mkdir $(VENV)/audit/locks && for lock in $(locks); do \
	  sed 's/ ;[^\\]*/ /' $$lock >$(VENV)/audit/locks/$${lock##*/}; done
	$(VENV)/audit/bin/pip-audit --strict --disable-pip --require-hashes $(locks:requirements/%=--requirement $(VENV)/audit/locks/%)
endif

lock: $(VENV)/lock/ready
	$(VENV)/lock/bin/python requirements/lock.py

# Neither Helm nor other projects' definitions (CRDS) are in this repository: docs/kubernetes.md says where they come from.
HELM = helm
check-deploy: $(VENV)/deploy/ready
	$(VENV)/deploy/bin/python deploy/check.py --helm $(call quoted,$(HELM)) --crds $(call quoted,$(CRDS))

VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
DOCKER = docker
image:
	$(DOCKER) build --build-arg RUNTIME=$(EXTRA) --build-arg VERSION=$(VERSION) --build-arg REVISION=$(shell git rev-parse HEAD) \
	  --build-arg SOURCE=$(call quoted,$(SOURCE)) --tag logpx:$(VERSION)$(if $(filter gpu,$(EXTRA)),-gpu) .

# A tool in an environment of its own: what it needs does not mix with what logpx needs.
$(VENV)/audit/ready $(VENV)/deploy/ready $(VENV)/lock/ready: $(VENV)/%/ready: requirements/%.txt | $(VENV)/ready-$(EXTRA)
	$(PY) -m venv $(VENV)/$*
	$(VENV)/$*/bin/$(locked) --quiet --requirement $<
	@touch $@

# An environment that does not run, or whose set-up was cut short, is made anew: pip takes half a package for a whole one.
again := $(shell test ! -e $(VENV)/unfinished && $(PY) -c 'import sys, pip; assert sys.version_info >= (3, 11)' 2>/dev/null || echo again)

# Set-up. A stamp says what .venv holds: ready-cpu the service alone, ready-cpu-all torch and the development tools as well.
$(VENV)/ready-$(EXTRA): pyproject.toml $(locks) $(again) | $(PY)
	$(call install,build service $(EXTRA))
	@touch $@

$(VENV)/ready-$(EXTRA)-all: pyproject.toml $(locks) $(again) | $(PY)
	$(call install,build service $(EXTRA) otel training torch dev)
	@touch $(VENV)/ready-$(EXTRA) $@

# Whatever is installed has one of the hashes in requirements/, and is no code to be built; logpx is built by what is.
locked = python -m pip install --disable-pip-version-check --require-hashes --no-deps --only-binary :all:
# torch is large: where pip is set to look into a folder of wheels (PIP_FIND_LINKS) that has it, that one is taken. A build
# of it for CUDA needs more than one without, whose version ends in +cpu.
for_cuda = from importlib.metadata import version; raise SystemExit(version("torch").endswith("+cpu"))
define torch
$(VENV)/bin/$(locked) --quiet --no-index --requirement requirements/torch.txt 2>/dev/null || \
	  $(VENV)/bin/$(locked) --requirement requirements/torch.txt
	@if $(PY) -c '$(for_cuda)'; then $(VENV)/bin/$(locked) --requirement requirements/cuda.txt; fi
endef
define install
	@rm -f $(VENV)/ready-* && echo $$PPID >$(VENV)/unfinished
	@$(PY) -m pip uninstall --quiet --quiet --yes $(other_runtime)
	$(VENV)/bin/$(locked) $(patsubst %,--requirement requirements/%.txt,$(filter-out torch,$(1)))
	$(if $(filter torch,$(1)),$(torch))
	$(PY) -m pip install --disable-pip-version-check --no-deps --no-build-isolation --no-index --editable .
	@rm $(VENV)/unfinished
endef

$(PY): $(again)
	@if pid=$$(cat $(VENV)/unfinished 2>/dev/null) && kill -0 "$$pid" 2>/dev/null; then \
	  echo "Another make (process $$pid) is setting up $(VENV): wait for it, or remove the folder." >&2; exit 1; \
	fi; \
	for python in $(or $(PYTHON),python3.11 python3.12 python3.13 python3 python); do \
	  version=$$("$$python" --version 2>&1) || continue; \
	  found=$$version; \
	  "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || continue; \
	  if ! "$$python" -c 'import venv, ensurepip' 2>/dev/null; then \
	    echo "$$python cannot make a virtual environment (Debian, Ubuntu: apt-get install python3-venv)." >&2; exit 1; \
	  fi; \
	  rm -rf $(VENV) && mkdir $(VENV) && echo $$PPID >$(VENV)/unfinished && exec "$$python" -m venv $(VENV); \
	done; \
	echo "logpx needs Python 3.11 or newer and found $${found:-none}: install it, or say PYTHON=/path/to/python3." >&2; exit 1
