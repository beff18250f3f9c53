# The targets people and CI use; `make help` lists them.
# Nothing has to be installed beforehand but Go, git, make and, for the race detector, a C compiler:
# the tools are built from tools/go.mod and kept in the user's cache, by version.

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS   += --no-print-directory

GO ?= go

# -trimpath makes builds reproducible and lets all of them, the test cluster's included, share one build cache;
# without the commit stamped in, a commit alone does not rebuild what the tests and the demo use.
export GOFLAGS := -trimpath -buildvcs=false
# Without cgo for the same reason: so the cluster is built, and the images need static programs anyway.
# Only the race detector wants it.
export CGO_ENABLED := 0

comma := ,

CACHE     := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/azp-scaler
OUT       := out
IMAGE_PREFIX ?= ghcr.io/azp-scaler
VERSION      ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
PLATFORM     ?= linux/$(shell $(GO) env GOARCH)
TOOLS_KEY := $(shell { $(GO) env GOVERSION GOARCH; cat tools/go.mod tools/go.sum; } | sha256sum | cut -c1-16)
TOOLS     := $(CACHE)/tools/$(TOOLS_KEY)

GOLANGCI_LINT := $(TOOLS)/golangci-lint
GOFUMPT       := $(TOOLS)/gofumpt
GOTESTSUM     := $(TOOLS)/gotestsum

# A package belongs to the end-to-end tests when its code or its tests use the test cluster.
# The others need no cluster and run first, as they fail sooner.
PACKAGES = $(GO) list -f '{{.ImportPath}} {{join .Imports " "}} {{join .TestImports " "}} {{join .XTestImports " "}}' ./...
CLUSTER  = azp-scaler/test/(cluster|e2e|demo)( |/)
UNIT     = $$($(PACKAGES) | awk -v cluster='$(CLUSTER)' '$$0 !~ cluster {print $$1}')
E2E      = $$($(PACKAGES) | awk -v cluster='$(CLUSTER)' '$$0 ~ cluster {print $$1}')

TEST_FORMAT  ?= pkgname
TEST_FLAGS   ?=
UNIT_TIMEOUT ?= 15m
# How many tests of a package run side by side: those of the entrypoint wait most of the time.
UNIT_PARALLEL ?= 4
E2E_TIMEOUT  ?= 55m
# How many of the systems that the end-to-end tests set up run side by side. Two fill two processors; with three, some
# of what must happen within seconds no longer does.
E2E_PARALLEL ?= 2

##@ Main
.PHONY: help
help: ## List the targets.
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z0-9-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: $(OUT)/bin ## Run the main job end to end on a real Kubernetes (DEMO_BUILDS=20 DEMO_SEED=n DEMO_KEEP=1).
	@echo "Building the demo ..."
	@$(GO) build -o $(OUT)/bin/demo ./test/demo
	@exec $(OUT)/bin/demo

.PHONY: test
test: test-unit test-e2e ## Run every test: unit and integration, then end to end on the cluster.

.PHONY: test-unit
test-unit: $(GOTESTSUM) need-cc ## Run the tests that need no cluster, with the race detector.
	@packages="$(UNIT)"; \
	CGO_ENABLED=1 $(GOTESTSUM) --format $(TEST_FORMAT) -- -race -parallel $(UNIT_PARALLEL) -timeout $(UNIT_TIMEOUT) $(TEST_FLAGS) $$packages

# One package at a time, as each starts a cluster of its own, and never from go's cache of results, as what the tests
# see of the machine is more than the files that go knows of.
.PHONY: test-e2e
test-e2e: $(GOTESTSUM) need-cc ## Run the tests on the cluster: a real node as root, simulated pods otherwise.
	@packages="$(E2E)"; \
	if [ -z "$$packages" ]; then echo "no package uses the test cluster" >&2; exit 1; fi; \
	CGO_ENABLED=1 $(GOTESTSUM) --format $(TEST_FORMAT) -- -race -count=1 -p 1 -parallel $(E2E_PARALLEL) -timeout $(E2E_TIMEOUT) $(TEST_FLAGS) $$packages

# make test installs the chart as the README says, and has one build run.
.PHONY: test-chart
test-chart: need-cc ## Build both images with buildah, install the chart on a real node, run builds, make trouble, and upgrade it (CHART_BUILDS=30; needs root).
	@CHART_BUILDS=$${CHART_BUILDS:-30} CGO_ENABLED=1 \
	  $(GO) test -race -count=1 -v -parallel $(E2E_PARALLEL) -timeout 40m $(TEST_FLAGS) -run '^Test(Chart|ScalerImage)' ./test/e2e

# One line for each seed that fails, and what was done in all. make test runs the first 200 seeds with fewer builds.
.PHONY: simulate
simulate: ## Run the loop through random histories in virtual time (SEEDS=10000 BUILDS=50 FIRST=1; SEED=n replays one and prints it).
	@SIMULATE_SEED=$${SEED:-} SIMULATE_FIRST=$${FIRST:-} SIMULATE_SEEDS=$${SEEDS:-10000} SIMULATE_BUILDS=$${BUILDS:-50} \
	  $(GO) test -count=1 -timeout 6h -v -run '^TestHistories$$' $(TEST_FLAGS) ./test/simulate | { grep -vE '^ *(=== |--- PASS)' || true; }

# What grows with the time it is given. make test runs the same with fewer cases, and most of the end-to-end tests
# with agents that are registered in one of the two ways.
.PHONY: nightly
nightly: need-cc simulate ## Run the simulation and the property tests at length (SEEDS=10000 PLAN_CHECKS=100000), fuzz every parser, plant defects, run end to end with either registration (ROTATION_BUILDS=200), build the images anew, kill at each call, and make chaos.
	@$(GO) test -run '^$$' -bench Growth -benchtime 3x ./pkg/plan
	@PLAN_CHECKS=$${PLAN_CHECKS:-100000} CGO_ENABLED=1 \
	  $(GO) test -race -count=1 -timeout 6h $(TEST_FLAGS) ./pkg/plan
	@$(MAKE) fuzz
	@E2E_REGISTRATION=both ROTATION_BUILDS=$${ROTATION_BUILDS:-200} CGO_ENABLED=1 \
	  $(GO) test -race -count=1 -parallel $(E2E_PARALLEL) -timeout 2h $(TEST_FLAGS) ./test/e2e
	@IMAGES_ANEW=1 $(MAKE) test-chart
	@$(MAKE) kill-matrix
	@$(MAKE) chaos
	@$(MAKE) mutation

# Each system mostly waits, so two processors carry four of them.
.PHONY: kill-matrix
kill-matrix: ## Kill scaler and entrypoint at each of their calls (KILL_PLANS=all for each way to register, KILL_SYSTEMS=2, E2E_SEED=n).
	@KILL_PLANS=$${KILL_PLANS:-all} KILL_SYSTEMS=$${KILL_SYSTEMS:-2} \
	  $(GO) test -count=1 -v -parallel 4 -timeout 6h $(TEST_FLAGS) -run '^TestKilledAtEachCall$$' ./test/e2e

.PHONY: chaos
chaos: $(OUT)/bin ## Run builds while processes are killed and the service fails (CHAOS_BUILDS=2000 CHAOS_SEED=n CHAOS_REGISTRATION=config|jit|both).
	@CHAOS_BUILDS=$${CHAOS_BUILDS:-2000} CHAOS_OUT=$(CURDIR)/$(OUT)/chaos.json E2E_SEED=$${CHAOS_SEED:-} E2E_REGISTRATION=$${CHAOS_REGISTRATION:-both} \
	  $(GO) test -count=1 -v -parallel 1 -timeout 6h $(TEST_FLAGS) -run '^TestChaos$$' ./test/e2e

##@ Code
.PHONY: build
build: $(OUT)/bin ## Build the scaler and the agent's entrypoint into out/bin, stamped with the commit.
	$(GO) build -buildvcs=auto -ldflags '-s -w' -o $(OUT)/bin/ ./cmd/...

.PHONY: images
images: ## Build the images with docker, podman or buildah (IMAGE_PREFIX, VERSION, PLATFORM, PUSH=1, ENGINE; see docs/images.md).
	@IMAGE_PREFIX='$(IMAGE_PREFIX)' VERSION='$(VERSION)' PLATFORM='$(PLATFORM)' deploy/images/build.sh

# The programs are built as the Dockerfiles do, which gives the same bytes: what is told of the one is true of the other.
.PHONY: sbom
sbom: ## List the modules in the images' programs, by CycloneDX, in out/sbom (VERSION, PLATFORM).
	@mkdir -p $(OUT)/sbom
	@for platform in $(subst $(comma), ,$(PLATFORM)); do \
	  arch=$${platform#linux/}; arch=$${arch%%/*}; \
	  for program in scaler agent-entrypoint; do \
	    GOOS=linux GOARCH=$$arch $(GO) build -ldflags '-s -w -X main.version=$(VERSION)' -o $(OUT)/sbom/$$program-linux-$$arch ./cmd/$$program; \
	    $(GO) -C tools/sbom tool cyclonedx-gomod bin -json -std -licenses -version '$(VERSION)' -output $(CURDIR)/$(OUT)/sbom/$$program-linux-$$arch.cdx.json \
	      $(CURDIR)/$(OUT)/sbom/$$program-linux-$$arch; \
	    echo "$(OUT)/sbom/$$program-linux-$$arch.cdx.json"; \
	  done; \
	done

.PHONY: fmt
fmt: $(GOFUMPT) ## Format all Go files.
	@$(GOFUMPT) -w .

.PHONY: fmt-check
fmt-check: $(GOFUMPT) ## Fail if a Go file is not formatted.
	@files="$$($(GOFUMPT) -l .)"; \
	if [ -n "$$files" ]; then printf 'not formatted, run "make fmt":\n%s\n' "$$files" >&2; exit 1; fi

.PHONY: lint
lint: $(GOLANGCI_LINT) fmt-check ## Check formatting, go.mod, go vet and the linters.
	@$(GO) mod tidy -diff
	@$(GO) vet ./...
	@$(GOLANGCI_LINT) run ./...

.PHONY: docs
docs: ## Write the tables of settings, metrics, exit codes, rights and the chart's values anew from the code.
	@$(GO) test -count=1 ./test/structure -run '^TestREADME' -update
	@$(GO) test -count=1 ./cmd/agent-entrypoint -run '^TestDocumentation' -update
	@$(GO) test -count=1 -short ./pkg/cluster -run '^TestRightsAreDocumented' -update
	@$(GO) test -count=1 ./test/chart -run '^TestREADME$$' -update

.PHONY: bench
bench: ## Run the benchmarks that need no cluster.
	@packages="$(UNIT)"; \
	$(GO) test -run '^$$' -bench . -benchmem $(TEST_FLAGS) $$packages

.PHONY: bench-startup
bench-startup: $(OUT)/bin ## Compare how agents start that the scaler registers with those that pods do, on the cluster (BENCH_BUILDS=10).
	@$(GO) build -o $(OUT)/bin/bench-startup ./test/bench/startup
	@exec $(OUT)/bin/bench-startup

# Each target for itself, as go fuzzes one at a time. What it finds is written into the package's testdata, and is a case
# of the package's tests from then on.
FUZZ_TIME ?= 60s

.PHONY: fuzz
fuzz: ## Fuzz every parser, each for a time (FUZZ_TIME=60s).
	@grep -rno --include='*_test.go' '^func Fuzz[A-Za-z]*' pkg test | sed 's#/[^/]*:[0-9]*:func # #' | sort | while read -r package target; do \
	  echo "==> $$target of $$package"; \
	  $(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZ_TIME) "./$$package"; \
	done

.PHONY: mutation
mutation: ## Plant one defect at a time, and see that the tests notice (MUTATIONS=regexp).
	@$(GO) run ./test/mutation

.PHONY: tools
tools: $(GOLANGCI_LINT) $(GOFUMPT) $(GOTESTSUM) ## Build the development tools into the cache.
	@$(GO) -C tools/helm tool -n helm >/dev/null

.PHONY: clean
clean: ## Remove what was built in the repository (the cache stays: see clean-cache).
	rm -rf $(OUT)

.PHONY: clean-cache
clean-cache: ## Remove the cached tools, images and test cluster.
	rm -rf $(CACHE)

# The race detector links against the C library.
.PHONY: need-cc
need-cc:
	@command -v "$$($(GO) env CC)" >/dev/null || { \
	  echo "the race detector needs a C compiler and none is installed: apt-get install gcc libc6-dev" >&2; exit 1; }

$(OUT)/bin:
	@mkdir -p $@

# Built beside the final name and then renamed, so that a build cut short leaves no broken tool.
$(TOOLS)/%:
	@mkdir -p $(TOOLS)
	@echo "Building $* (once) ..."
	@tool="$$($(GO) -C tools list -f '{{.ImportPath}}' tool | grep '/$*$$')"; \
	$(GO) -C tools build -ldflags '-s -w' -o "$@.$$$$" "$$tool" && mv "$@.$$$$" "$@"
