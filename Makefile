# Holdfast. `make` alone lists the targets. Two of them need nothing but Go
# and a C compiler: `make demo` and `make build`.

.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:

GO  ?= go
BIN := $(CURDIR)/.bin

GOLANGCI_LINT := v2.15.0

# The version is the newest numbered heading of the changelog, so that it is
# written in one place. The commit and its time come from git; a tarball says
# "unknown" and 1980, and stays reproducible.
VERSION ?= $(or $(shell sed -n 's/^\#\# \[\([0-9][^]]*\)\].*/\1/p' packaging/CHANGELOG 2>/dev/null | head -n 1),0.0.0)
COMMIT  ?= $(or $(shell git describe --always --dirty --abbrev=12 --exclude '*' 2>/dev/null),unknown)
SOURCE_DATE_EPOCH ?= $(or $(shell git log -1 --format=%ct 2>/dev/null),315532800)
export SOURCE_DATE_EPOCH

# netgo and osusergo keep glibc's resolver and NSS out, so that a static binary
# behaves like this one; sqlite_omit_load_extension keeps dlopen out.
TAGS := netgo osusergo sqlite_omit_load_extension
# main.built is the floor of the clock: no reading is older than its program.
STAMP := -X main.version=$(VERSION) -X main.commit=$(COMMIT) -X main.built=$(SOURCE_DATE_EPOCH)

# Tests, lint and release share these, for two reasons: what is tested is the
# SQLite that ships, and SQLite (40 s) is compiled once for all of them, plus
# once for the race detector.
SQLITE := -DSQLITE_DQS=0 -DSQLITE_DEFAULT_MEMSTATUS=0 -DSQLITE_OMIT_DEPRECATED -DSQLITE_OMIT_SHARED_CACHE
export CGO_ENABLED := 1
export CGO_CFLAGS  := -O2 $(SQLITE)
# The commit is stamped by STAMP; -buildvcs would fail in a tarball.
BUILD := -trimpath -buildvcs=false -tags "$(TAGS)"

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: build ## build, then watch nothing get lost: about two minutes
	dist/holdfast demo

.PHONY: test
test: ## everything a change must pass; installs the Debian packages it needs where it may
	.ci/test

.PHONY: build
build: ## dist/holdfast for this machine
	$(GO) build $(BUILD) -ldflags '$(STAMP)' -o dist/holdfast ./cmd/holdfast

# The steps of .ci/test, each of them also a target of its own.
.PHONY: vet unit integration
vet:
	$(GO) vet $(BUILD) ./...
	$(GO) vet -trimpath -buildvcs=false -tags "$(TAGS) integration" ./...

# -vet=off: vet has run over everything already.
unit: ## unit and property tests under the race detector
	$(GO) test $(BUILD) -vet=off -race -timeout 10m ./...

# Without the race detector, which also lets the allocation counts be exact.
integration: ## the same plus the tests that need a tty, root or a peer
	$(GO) test -trimpath -buildvcs=false -tags "$(TAGS) integration" -vet=off -timeout 10m ./...

.PHONY: lint
lint: golangci-lint ## golangci-lint over the whole tree
	GOFLAGS="$${GOFLAGS:-} -trimpath" $(BIN)/golangci-lint run ./...

.PHONY: fmt
fmt: golangci-lint ## gofumpt and the order of imports
	$(BIN)/golangci-lint fmt ./...

.PHONY: golangci-lint
golangci-lint:
	@$(GO) version -m $(BIN)/golangci-lint 2>/dev/null | grep -q 'golangci-lint/v2.*$(GOLANGCI_LINT)' || \
	  CGO_ENABLED=0 GOBIN=$(BIN) $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_LINT)

.PHONY: clean
clean: ## remove dist/; .bin and Go's caches stay
	rm -rf dist
