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
#   make test-images   what docker/ builds, without a container engine; as root on Debian 12, ten minutes; arm64 too with qemu-user-static
#   make requirements  pin what docker/ installs, by hash, to the versions of constraints.txt
#   make lint-deploy   policies and KServe's fields over docker/, with tools that bring a hundred packages of their own
#   make sbom          what is in the server's image, as CycloneDX, and under which licences; into dist/
#   make arm64-wheels  whether the server's packages are all there for arm64
#   make nightly       these, and test-images: what needs package indices and an hour, and so is no part of `make test`
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
.PHONY: help demo test test-all bench bench-targets bench-serving test-images requirements lint lint-deploy sbom \
	arm64-wheels nightly protos clean

help:
	@sed -n '/^$$/q;s/^# \{0,1\}//p' Makefile

demo: $(VENV)/.installed-export
	$(BIN)/ferryman demo $(ARGS)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile $(ARGS)

test-all: $(VENV)/.installed-dev $(VENV)/.installed-bench
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile -m "" $(ARGS)

BENCHED := demo/bench/vit-digits demo/bench/detr-digits
bench: $(VENV)/.installed-dev $(VENV)/.installed-bench $(BENCHED)
	$(BIN)/python docs/figures.py $(ARGS)

$(BENCHED):
	$(BIN)/ferryman export $(@F) -o $(@D) --target openvino-cpu-fp32

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
	$(PIN) ../../pyproject.toml export.in --extra export --extra hub --extra openvino --excludes elsewhere.in \
	    --output-file export.txt
	$(PIN) ../../pyproject.toml server-gpu.in --extra gpu --no-emit-package onnxruntime --output-file server-gpu.txt
	$(PIN) ../../pyproject.toml server-jetson.in --output-file server-jetson.txt

# checkov pins a hundred packages, hence an environment of its own.
lint-deploy: $(VENV)/.installed-dev
	@test -x $(VENV)/checkov/bin/checkov || { $(BIN)/python -m venv $(VENV)/checkov && \
	    $(VENV)/checkov/bin/pip --disable-pip-version-check -q install checkov==3.3.30 && \
	    $(VENV)/checkov/bin/pip --disable-pip-version-check -q install --no-deps kserve==0.21.0; }
	rm -rf build/manifests
	PATH="$(CURDIR)/$(BIN):$$PATH" sh docker/kubernetes/render.sh build/manifests
	cp docker/kubernetes/fill.yaml build/manifests
	$(VENV)/checkov/bin/checkov --skip-download --quiet --compact --framework kubernetes --directory build/manifests
	$(VENV)/checkov/bin/checkov --skip-download --quiet --compact --framework dockerfile --directory docker
	$(VENV)/checkov/bin/python docker/kubernetes/kserve/check.py

# The server's packages as the image has them, in an environment without even pip.
SERVER := build/server/bin/python
sbom: $(VENV)/.created
	@test -x $(VENV)/sbom/bin/cyclonedx-py || { $(BIN)/python -m venv $(VENV)/sbom && \
	    $(VENV)/sbom/bin/pip --disable-pip-version-check -q install cyclonedx-bom==7.5.0 pip-licenses==5.5.5; }
	rm -rf build/server
	$(BIN)/python -m venv --without-pip build/server
	$(BIN)/python -m pip -q --python $(SERVER) install --only-binary :all: --require-hashes \
	    --requirement docker/requirements/server.txt
	$(BIN)/python -m pip -q --python $(SERVER) install --no-deps .
	mkdir -p dist
	$(VENV)/sbom/bin/cyclonedx-py environment --pyproject pyproject.toml --mc-type application --output-reproducible \
	    --validate --output-format JSON --output-file dist/server.cdx.json $(SERVER)
	$(VENV)/sbom/bin/pip-licenses --python $(SERVER) --from mixed --format markdown --with-urls \
	    --output-file dist/server-licences.md

# pip takes each name of a platform exactly.
ARM64 := manylinux_2_28_aarch64 manylinux_2_27_aarch64 manylinux_2_17_aarch64 manylinux2014_aarch64
arm64-wheels: $(VENV)/.created
	rm -rf build/arm64-wheels
	for version in 311 312 313; do \
	    $(BIN)/python -m pip --disable-pip-version-check -q download --only-binary :all: --no-deps --require-hashes \
	        $(addprefix --platform ,$(ARM64)) --python-version $$version --dest build/arm64-wheels/$$version \
	        --requirement docker/requirements/server.txt && ls -1 build/arm64-wheels/$$version || exit; \
	done

nightly: lint-deploy sbom arm64-wheels test-images

clean:
	rm -rf $(VENV) build demo dist .pytest_cache .ruff_cache
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
