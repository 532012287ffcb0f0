# Holdfast. `make` alone lists the targets. Two of them need nothing but Go
# and a C compiler: `make demo` and `make build`.

.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:

GO  ?= go
BIN := $(CURDIR)/.bin

GOLANGCI_LINT := v2.15.0
# Newer ones do not build from the module proxy.
NFPM          := v2.45.2
# A cloud of the integration tests: three nodes with MQTT.
NATS_SERVER   := v2.11.10

# The version is the newest numbered heading of the changelog, so that it is
# written in one place. The commit, and its time for the package's files, come from git; a tarball
# says "unknown" and 1980, and stays reproducible.
VERSION ?= $(or $(shell sed -n 's/^\#\# \[\([0-9][^]]*\)\].*/\1/p' packaging/CHANGELOG 2>/dev/null | head -n 1),0.0.0)
COMMIT  ?= $(or $(shell git describe --always --dirty --abbrev=12 --exclude '*' 2>/dev/null),unknown)
SOURCE_DATE_EPOCH ?= $(or $(shell git log -1 --format=%ct 2>/dev/null),315532800)
export SOURCE_DATE_EPOCH

# netgo and osusergo keep glibc's resolver and NSS out, so that a static binary
# behaves like this one; sqlite_omit_load_extension keeps dlopen out, and
# nethttpomithttp2 half a megabyte that neither WebSocket nor the console speaks.
TAGS := netgo osusergo sqlite_omit_load_extension nethttpomithttp2
STAMP := -X main.version=$(VERSION) -X main.commit=$(COMMIT) -X main.built=$(SOURCE_DATE_EPOCH)

# Tests, lint and release share these, for two reasons: what is tested is the
# SQLite that ships, and SQLite (40 s) is compiled once for all of them, plus
# once for the race detector.
# Nobody unwinds through C here, which saves 120 kB of tables; what is not used is
# left out at the link. The driver turns on full-text search and R-trees, 160 kB;
# -Wp comes behind its flags and turns them off.
SQLITE := -fno-asynchronous-unwind-tables -fno-unwind-tables -ffunction-sections -fdata-sections -DSQLITE_DQS=0 -DSQLITE_DEFAULT_MEMSTATUS=0 -DSQLITE_OMIT_DEPRECATED -DSQLITE_OMIT_SHARED_CACHE \
  -Wp,-USQLITE_ENABLE_FTS3 -Wp,-USQLITE_ENABLE_FTS3_PARENTHESIS -Wp,-USQLITE_ENABLE_RTREE
export CGO_ENABLED := 1
export CGO_CFLAGS  := -O2 $(SQLITE)
# The commit is stamped by STAMP; -buildvcs would fail in a tarball.
BUILD := -trimpath -buildvcs=false -tags "$(TAGS)"

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

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
	$(GO) vet -trimpath -buildvcs=false -tags "$(TAGS) integration powercut" ./...

# -vet=off: vet has run over everything already.
unit: ## unit and property tests under the race detector
	$(GO) test $(BUILD) -vet=off -race -timeout 10m ./...

# Without the race detector, which also lets the allocation counts be exact.
integration: nats-server ## the same plus the tests that need a tty, root or a peer
	$(GO) test -trimpath -buildvcs=false -tags "$(TAGS) integration" -vet=off -timeout 10m ./...

# The static binaries that ship. armv6 is for the first Raspberry Pi and Zero:
# its compiler is gnueabi with softfp, because the libc of gnueabihf is built
# for ARMv7 and dies there with SIGILL.
ARCHES := amd64 arm64 armv7 armv6
GOENV_amd64 := GOARCH=amd64
GOENV_arm64 := GOARCH=arm64
GOENV_armv7 := GOARCH=arm GOARM=7
GOENV_armv6 := GOARCH=arm GOARM=6
CC_amd64 := x86_64-linux-gnu-gcc
CC_arm64 := aarch64-linux-gnu-gcc
CC_armv7 := arm-linux-gnueabihf-gcc
CC_armv6 := arm-linux-gnueabi-gcc
CFLAGS_amd64 := -O2
CFLAGS_arm64 := -O2
# The compiler's own defaults are ARMv7 with VFPv3-D16. Not -mthumb: it reaches
# the assembler files of Go's runtime too, and the program dies at its start.
CFLAGS_armv7 := -Os
CFLAGS_armv6 := -Os -march=armv6 -marm -mfpu=vfp -mfloat-abi=softfp
DEBS_amd64 := gcc-x86-64-linux-gnu libc6-dev-amd64-cross
DEBS_arm64 := gcc-aarch64-linux-gnu libc6-dev-arm64-cross
DEBS_armv7 := gcc-arm-linux-gnueabihf libc6-dev-armhf-cross
DEBS_armv6 := gcc-arm-linux-gnueabi libc6-dev-armel-cross
# What this machine compiles for is compiled by plain gcc, as the tests are:
# another name for it would compile SQLite once more.
CC_$(shell $(GO) env GOHOSTARCH) := gcc

# Packages in which nobody waits for the processor: handshakes, configuration, the
# command line, the console's pages. There the binary that ships does without
# inlining, which makes it 0.4 MB smaller.
COLD := holdfast/cmd/... holdfast/adapters/port holdfast/adapters/modbus/profile holdfast/adapters/modbus/modbustest holdfast/adapters/modbus/survey \
  holdfast/storeforward/uplink/dial github.com/pelletier/go-toml/v2/... github.com/spf13/... \
  crypto/tls crypto/x509 crypto/hpke encoding/asn1 net/http net/url mime/... regexp/syntax runtime/pprof text/... \
  vendor/golang.org/x/net/... vendor/golang.org/x/text/...

.PHONY: cross $(ARCHES:%=cross-%)
cross: $(ARCHES:%=cross-%) ## dist/linux-*/holdfast: static, for amd64, arm64, armv7 and armv6
$(ARCHES:%=cross-%): cross-%:
	@command -v $(CC_$*) >/dev/null || { echo "$(CC_$*) is missing: apt-get install $(DEBS_$*)" >&2; exit 1; }
	GOOS=linux $(GOENV_$*) CC=$(CC_$*) CGO_CFLAGS="$(CFLAGS_$*) $(SQLITE)" $(GO) build $(BUILD) $(COLD:%=-gcflags=%=-l) \
	  -ldflags "$(STAMP) -linkmode external -extldflags '-static -Wl,--gc-sections' -s -w" -o dist/linux-$*/holdfast ./cmd/holdfast
	packaging/test/elf $* dist/linux-$*/holdfast

# nfpm's and Debian's names of the architectures.
NFPM_amd64 := amd64
NFPM_arm64 := arm64
NFPM_armv7 := arm7
NFPM_armv6 := arm6
DEB_amd64 := amd64
DEB_arm64 := arm64
DEB_armv7 := armhf
DEB_armv6 := armhf
READY := $(foreach a,$(ARCHES),$(if $(shell command -v $(CC_$a)),$a))

.PHONY: package $(ARCHES:%=package-%)
package: $(READY:%=package-%) ## dist/linux-*/holdfast_*.deb for each architecture there is a compiler for
	@ls -l dist/linux-*/*.deb
	@for arch in $(filter-out $(READY),$(ARCHES)); do echo "left out for want of a compiler: $$arch"; done
$(ARCHES:%=package-%): package-%: cross-% nfpm
	gzip -9 -n -c packaging/CHANGELOG > dist/linux-$*/changelog.gz
	rm -f dist/linux-$*/*.deb
	ARCH=$(NFPM_$*) VERSION=$(VERSION) STAGE=dist/linux-$* \
	  $(BIN)/nfpm package -f packaging/nfpm.yaml -p deb -t dist/linux-$*/holdfast_$(VERSION)_$(DEB_$*).deb

.PHONY: nfpm
nfpm:
	@$(GO) version -m $(BIN)/nfpm 2>/dev/null | grep -q 'nfpm/v2.*$(NFPM)' || \
	  CGO_ENABLED=0 GOBIN=$(BIN) $(GO) install github.com/goreleaser/nfpm/v2/cmd/nfpm@$(NFPM)

.PHONY: modules
modules: ## after a change of go.mod or of imports: the lists of modules and packages, the licences
	$(GO) run ./packaging/modules

.PHONY: bench
bench: build ## the broker beside mosquitto, where it is installed, and beside a null broker; BENCHFLAGS='--mqtt 5.0 --svg chart.svg'
	$(GO) build $(BUILD) -o dist/holdfast-bench ./cmd/holdfast-bench
	@uptime
	PATH=$$PATH:/usr/sbin; if command -v mosquitto >/dev/null; then set -- --peer mosquitto; fi; \
	  dist/holdfast-bench "$$@" --peer floor-epoll --peer floor-goroutine --peer "$$LOADED_PEER" $(BENCHFLAGS)

# As it ships, but for room for 10,000 idle connections.
define LOADED_PEER
holdfast=sh -c "printf '[broker]\nmax_connections = 11000\nmax_sessions = 110000\n' > {dir}/bench.toml; exec dist/holdfast run --config {dir}/bench.toml --listen tcp://127.0.0.1:{port} --data {dir}"
endef
export LOADED_PEER

.PHONY: microbench
microbench: ## benchmarks of all packages, ten runs, for benchstat
	$(GO) test $(BUILD) -run '^$$' -bench . -benchmem -count 10 -timeout 0 ./...

# Peers of bench-store; {dir} is a fresh folder of each. One session may hold the
# whole backlog.
define HOLDFAST_PEER
holdfast=sh -c 'printf "[store]\nmax_session_messages = 10000000\nmax_session_bytes = 2147483648\nsession_share = 100\n" > {dir}/h.toml; exec dist/holdfast run --config {dir}/h.toml --listen tcp://127.0.0.1:{port} --data {dir}'
endef
define MOSQUITTO_PEER
mosquitto=sh -c 'printf "listener {port} 127.0.0.1\nallow_anonymous true\npersistence true\npersistence_location {dir}/\nmax_queued_messages 0\nuser root\n" > {dir}/m.conf; exec mosquitto -c {dir}/m.conf'
endef
define WEAR_CLOUD
dist/holdfast run --listen tcp://127.0.0.1:{port} --data {dir}
endef
define WEAR_GATEWAY
sh -c 'printf "[gateway]\nid = \"wear{port}\"\ndata = \"{dir}\"\n[store]\ncommit_window = \"{window}\"\nmin_commit_interval = \"{window}\"\n[[listener]]\naddress = \"tcp://127.0.0.1:{port}\"\n[uplink.cloud]\nurl = \"mqtt://{cloud}\"\n[[uplink.cloud.route]]\ndirection = \"out\"\nfilter = \"wear/#\"\n" > {dir}/h.toml; exec dist/holdfast run --config {dir}/h.toml'
endef
export HOLDFAST_PEER MOSQUITTO_PEER WEAR_CLOUD WEAR_GATEWAY

ROUNDS ?= 3
.PHONY: bench-store
bench-store: build ## the store beside bare SQLite and beside mosquitto, where it is installed
	$(GO) build $(BUILD) -o dist/holdfast-bench ./cmd/holdfast-bench
	@uptime
	PATH=$$PATH:/usr/sbin; if command -v mosquitto >/dev/null; then set -- --peer "$$MOSQUITTO_PEER"; fi; \
	  dist/holdfast-bench store --rounds $(ROUNDS) --peer "$$HOLDFAST_PEER" "$$@" $(BENCHFLAGS)

.PHONY: bench-field
bench-field: build ## CPU and memory of reading 32 Modbus units x 50 points a second, beside pymodbus where it is installed; FIELDFLAGS='--units 8'
	$(GO) build $(BUILD) -o dist/holdfast-bench ./cmd/holdfast-bench
	dist/holdfast-bench field $(FIELDFLAGS)

.PHONY: bench-wear
bench-wear: build ## bytes written to flash per message, by link, rate and window
	$(GO) build $(BUILD) -o dist/holdfast-bench ./cmd/holdfast-bench
	dist/holdfast-bench wear --cloud "$$WEAR_CLOUD" --gateway "$$WEAR_GATEWAY"

.PHONY: bench-uplink
bench-uplink: build ## the way to the cloud beside mosquitto's bridge, where it is installed; BENCHFLAGS='--only drain,live'
	$(GO) build $(BUILD) -o dist/holdfast-bench ./cmd/holdfast-bench
	@uptime
	PATH=$$PATH:/usr/sbin; dist/holdfast-bench uplink --mosquitto "$$(command -v mosquitto)" $(BENCHFLAGS)

# On a busy machine Go's fuzzer may be late to stop its own workers, and calls that
# a failure, "context deadline exceeded", though it has no input to show for it.
FUZZTIME ?= 30s
.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME=30s each
	@log=$$(mktemp); trap 'rm -f "$$log"' EXIT; \
	for pkg in $$($(GO) list $(BUILD) ./...); do \
	  for target in $$($(GO) test $(BUILD) -vet=off -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
	    echo "=== $$pkg $$target"; \
	    $(GO) test $(BUILD) -vet=off -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) $$pkg 2>&1 | tee "$$log" || \
	      { grep -q '^    context deadline exceeded$$' "$$log" && ! grep -q 'Failing input' "$$log"; } || exit 1; \
	  done; \
	done

# Without -trimpath and with a cache of its own: a file with cgo in it comes out
# of the build cache with the paths of the checkout that compiled it, and under
# -trimpath every checkout shares one entry.
.PHONY: lint
lint: golangci-lint ## golangci-lint over the whole tree
	GOLANGCI_LINT_CACHE=$(BIN)/lint-cache $(BIN)/golangci-lint run --allow-parallel-runners ./...

.PHONY: fmt
fmt: golangci-lint ## gofumpt and the order of imports
	$(BIN)/golangci-lint fmt ./...

.PHONY: golangci-lint
golangci-lint:
	@$(GO) version -m $(BIN)/golangci-lint 2>/dev/null | grep -q 'golangci-lint/v2.*$(GOLANGCI_LINT)' || \
	  CGO_ENABLED=0 GOBIN=$(BIN) $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_LINT)

CUTS ?= 20000
.PHONY: crash
crash: ## CUTS=20000 simulated power cuts of the store
	HOLDFAST_CUTS=$(CUTS) $(GO) test $(BUILD) -vet=off -run '^TestCrash$$' -count 1 -timeout 0 -v ./storeforward

DEVICES ?= 50
.PHONY: month
month: ## 30 days of DEVICES=50 devices each second, with the link down for days: minutes
	HOLDFAST_MONTH=$(DEVICES) $(GO) test $(BUILD) -vet=off -run '^TestMonth$$' -count 1 -timeout 0 -v ./storeforward

.PHONY: nats-server
nats-server:
	@$(GO) version -m $(BIN)/nats-server 2>/dev/null | grep -q 'nats-server/v2.*$(NATS_SERVER)' || \
	  CGO_ENABLED=0 GOBIN=$(BIN) $(GO) install github.com/nats-io/nats-server/v2@$(NATS_SERVER)

OUTAGES ?= 200
.PHONY: outage
outage: build ## OUTAGES=200 accidents of the link under a gateway with mosquitto, and with a second Holdfast, as its cloud
	HOLDFAST_BINARY=$(CURDIR)/dist/holdfast HOLDFAST_OUTAGES=$(OUTAGES) $(GO) test -trimpath -buildvcs=false -tags "$(TAGS) integration" -vet=off \
	  -run '^Test(Mosquitto)?Outages$$' -count 1 -timeout 0 -v ./cmd/holdfast

GATEWAYS ?= 1000
.PHONY: fleet
fleet: nats-server ## GATEWAYS=1000 in one process at a cluster of three brokers, cut off together; memory and processor of each
	HOLDFAST_FLEET=$(GATEWAYS) $(GO) test -trimpath -buildvcs=false -tags "$(TAGS) integration" -vet=off -run '^TestFleet$$' -count 1 -timeout 0 -v ./cmd/holdfast

POWERCUTS ?= 100
.PHONY: powercut
powercut: ## POWERCUTS=100 power cuts under the running daemon on a real file system; needs root
	HOLDFAST_CUTS=$(POWERCUTS) $(GO) test -trimpath -buildvcs=false -tags "$(TAGS) powercut" -vet=off -run '^TestPowerCut' -count 1 -timeout 0 -v ./cmd/holdfast

.PHONY: systemd-check
systemd-check: ## the unit's keys, its exposure, users and folders
	systemd/check

.PHONY: clean
clean: ## remove dist/; .bin and Go's caches stay
	rm -rf dist
