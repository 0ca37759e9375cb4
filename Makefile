# Everything happens in .venv, made from nothing but Python 3.11, 3.12 or 3.13 and pip.
#
#   make demo     carry both embedded models across, serve them, ask them about pictures
#   make test     the tests, a quarter of an hour; one of them: make test ARGS="-k wheel"
#   make test-all   those too that take long, hours
#   make bench    measure again what the docs state, hours; some of it: make bench ARGS="digits serving"
#   make bench-targets   the variants' speed against the stock recipe's, an hour or more; fewer: ARGS="--model vit-base"
#   make bench-serving   the server's speed beside a bare loop's and others', fifteen minutes; a flood too: ARGS="--overload 60"
#   make lint     style, types, protos
#   make protos   regenerate the gRPC code in serve/ferryman
#   make test-images   what docker/ builds, without a container engine; as root on Debian 12, ten minutes
#   make requirements  pin what docker/ installs, by hash, to the versions of constraints.txt
#   make clean    remove .venv and everything generated
#
# PYTHON=python3.12 picks the interpreter, TORCH_INDEX=URL another index for torch, WORKERS=4 how many processes test.

PYTHON ?=
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
ARGS ?=
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip --disable-pip-version-check install --constraint constraints.txt
PROTOC := $(BIN)/python -m grpc_tools.protoc -Iprotos --python_out=serve --pyi_out=serve --grpc_python_out=serve

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test test-all bench bench-targets bench-serving test-images requirements lint protos clean

help:
	@sed -n '/^$$/q;s/^# \{0,1\}//p' Makefile

demo: $(VENV)/.installed-export
	$(BIN)/ferryman demo $(ARGS)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile $(ARGS)

test-all: $(VENV)/.installed-bench
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile -m "" $(ARGS)

BENCHED := demo/bench/vit-digits demo/bench/detr-digits
bench: $(VENV)/.installed-bench $(BENCHED)
	$(BIN)/python docs/figures.py $(ARGS)

$(BENCHED):
	$(BIN)/ferryman export $(@F) -o $(@D) --target all-cpu

bench-targets: $(VENV)/.installed-bench
	$(BIN)/python -m ferryman_export.bench_targets $(ARGS)

# MLServer wants a protobuf of its own, hence an environment of its own; 1.7.1 does not start with uvloop 0.22.
bench-serving: $(VENV)/.installed-bench
	@test -x $(VENV)/mlserver/bin/mlserver || { echo "==> Installing MLServer to compare with" && \
	    $(BIN)/python -m venv $(VENV)/mlserver && \
	    $(VENV)/mlserver/bin/pip --disable-pip-version-check -q install mlserver openvino 'uvloop<0.22'; } || \
	    echo "==> It can't be installed here: measured without it"
	$(BIN)/python -m ferryman_export.bench_serving \
	    $$(test -x $(VENV)/mlserver/bin/mlserver && echo --mlserver $(VENV)/mlserver/bin/python) $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/buf lint protos

protos: $(VENV)/.installed-dev
	$(PROTOC) $$(find protos -name '*.proto' | sort)

test-images: $(VENV)/.installed-dev
	FERRYMAN_IMAGES=1 $(BIN)/python -m pytest tests/docker $(ARGS)

# From inside, so that the files don't name where they were made.
PIN := cd docker/requirements && ../../$(BIN)/uv pip compile --constraint ../../constraints.txt --generate-hashes \
	--universal --python-version 3.11 --no-annotate --no-header --upgrade --quiet
requirements: $(VENV)/.installed-dev
	$(BIN)/python -m pip --disable-pip-version-check --quiet install uv
	$(PIN) build.in --output-file build.txt
	$(PIN) ../../pyproject.toml --output-file server.txt

clean:
	rm -rf $(VENV) demo dist .pytest_cache .ruff_cache
	find serve export models tests -type d -name __pycache__ -prune -exec rm -rf {} +

# A stamp is written last, so an interrupted step is done again. What the tests need includes what the demo needs.
$(VENV)/.installed-export: $(VENV)/.torch
	@echo "==> Installing Ferryman and what it takes to export (a minute or two)"
	$(PIP_INSTALL) --editable '.[export]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.torch
	@echo "==> Installing Ferryman and everything its tests need (two to four minutes)"
	$(PIP_INSTALL) --editable '.[export,train,dev]'
	@touch $(VENV)/.installed-export $@

$(VENV)/.installed-bench: $(VENV)/.torch
	@echo "==> Installing Ferryman and the stock recipe that it is measured against (a minute or two)"
	$(PIP_INSTALL) --editable '.[bench]'
	@touch $(VENV)/.installed-export $@

# pip alone would fetch a CUDA build of torch, several gigabytes, on Linux. In this order: a wheel already at hand
# (PIP_FIND_LINKS), the index of CPU builds, and whatever pip finds by itself in the step after this one.
$(VENV)/.torch: $(VENV)/.created pyproject.toml constraints.txt
	@if $(PIP_INSTALL) --quiet --no-index --no-deps torch >/dev/null 2>&1; then \
	  echo "==> torch: already at hand"; \
	elif $(BIN)/python -c "import urllib.request as r; r.urlopen('$(TORCH_INDEX)/torch/', timeout=5)" 2>/dev/null; then \
	  echo "==> torch: the CPU build from $(TORCH_INDEX)"; \
	  $(PIP_INSTALL) --no-deps --index-url $(TORCH_INDEX) torch; \
	else \
	  echo "==> torch: $(TORCH_INDEX) does not answer, so pip chooses the build (on Linux perhaps CUDA, gigabytes)"; \
	fi
	@touch $@

$(VENV)/.created:
	@set -e; fit=; \
	for python in $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python); do \
	  if $$python -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1; \
	  then fit=$$python; break; fi; \
	done; \
	if [ -z "$$fit" ]; then \
	  echo "Ferryman needs Python 3.11, 3.12 or 3.13 with its venv module, and found none." \
	    "Install one (Debian, Ubuntu: apt install python3 python3-venv) or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; \
	  exit 1; \
	fi; \
	echo "==> Making $(VENV) with $$fit ($$($$fit --version))"; \
	rm -rf $(VENV); $$fit -m venv $(VENV)
	@touch $@
