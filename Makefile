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

# ONNX Runtime reports its use to Microsoft unless told not to before it starts.
export ORT_DISABLE_TELEMETRY ?= 1

.PHONY: help serve test format train audit again

help:
	@echo 'make serve    the service on http://127.0.0.1:8000    (PORT=9000 another port, EXTRA=gpu with CUDA)'
	@echo 'make test     every check: format, lint, types, tests with coverage    (JOBS=4 as many at a time; EXTRA=gpu with CUDA)'
	@echo 'make format   formats the code and mends what the linter can'
	@echo 'make train    a model of MNIST, into the store    (DATA=folder or file, NAME=of the model; cut short, it goes on)'
	@echo 'make audit    looks up what is known against the versions in constraints.txt'
	@echo 'The first time, each installs what it needs into $(VENV)    (PYTHON=/path/to/python3 to choose one)'

serve: $(VENV)/ready-$(EXTRA)
	@$(if $(PORT),LOGPX_PORT=$(PORT)) exec $(PY) -m service

test: $(VENV)/ready-$(EXTRA)-all
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(PY) -m pytest --cov --numprocesses=$(JOBS) --dist=worksteal

format: $(VENV)/ready-$(EXTRA)-all
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

train: $(VENV)/ready-$(EXTRA)-all
	$(PY) -m training fit --data $(call quoted,$(DATA)) --out runs/$(NAME) $(if $(wildcard runs/$(NAME)/run.json),--resume)
	$(PY) -m training publish runs/$(NAME) --name $(NAME)

# --strict: what could not be looked up fails the audit too.
audit: $(VENV)/audit/bin/pip-audit
	$< --strict --disable-pip --no-deps --requirement constraints.txt

$(VENV)/audit/bin/pip-audit: | $(VENV)/ready-$(EXTRA)
	$(PY) -m venv $(VENV)/audit
	$(VENV)/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit

# An environment that does not run, or whose set-up was cut short, is made anew: pip takes half a package for a whole one.
again := $(shell test ! -e $(VENV)/unfinished && $(PY) -c 'import sys, pip; assert sys.version_info >= (3, 11)' 2>/dev/null || echo again)

# Set-up. A stamp says what .venv holds: ready-cpu the service alone, ready-cpu-all torch and the development tools as well.
$(VENV)/ready-$(EXTRA): pyproject.toml constraints.txt $(again) | $(PY)
	$(call install,.[$(EXTRA)])
	@touch $@

$(VENV)/ready-$(EXTRA)-all: pyproject.toml constraints.txt $(again) | $(PY)
	$(call install,.[$(EXTRA)$(comma)otel$(comma)training$(comma)dev])
	@touch $(VENV)/ready-$(EXTRA) $@

comma = ,
define install
	@rm -f $(VENV)/ready-* && echo $$PPID >$(VENV)/unfinished
	@$(PY) -m pip uninstall --quiet --quiet --yes $(other_runtime)
	$(PY) -m pip install --disable-pip-version-check --constraint constraints.txt --editable '$(1)'
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
