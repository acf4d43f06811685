# Tocsin. `make help` lists the targets.

# The labels' representation that Thanos's libraries need: see docs/adr/0002-slicelabels.md. Everything that compiles
# Go must see it, so it is exported to vet, lint and test alike.
# The profile is for the binary alone: with it, every package is compiled anew, and tests and linters need not wait.
export GOFLAGS := -buildvcs=false -tags=slicelabels -pgo=off
# A static binary, and one build cache for building and linting. Only the race detector needs cgo.
export CGO_ENABLED := 0

VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
REVISION ?= $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
BRANCH   ?= $(shell git rev-parse --abbrev-ref HEAD 2>/dev/null || echo unknown)
DATE     ?= $(shell git log -1 --format=%cI 2>/dev/null || echo unknown)
LDFLAGS  := -s -w -X main.version=$(VERSION) -X main.revision=$(REVISION) -X main.branch=$(BRANCH) -X main.buildDate=$(DATE) -X github.com/prometheus/common/version.Version=$(VERSION)

comma   := ,
BIN     := bin
DATA    ?= data
LISTEN  ?= 127.0.0.1:9090
PKGS    := ./appliance/... ./cmd/... ./web/...
LINT    := $(BIN)/golangci-lint
THANOS  := $(BIN)/peers/thanos
S3      := $(BIN)/peers/versitygw

.DEFAULT_GOAL := help

##@ Use

.PHONY: run
run: build ## Build and start on the built-in configuration; prints the URL.
	@echo "Tocsin will be at http://$(LISTEN)/ when it says 'ready'. Stop with Ctrl-C. Data is in $(DATA)/."
	$(BIN)/tocsin run --storage.path=$(DATA) --web.listen-address=$(LISTEN) --alertmanager.listen-address=127.0.0.1:9093

.PHONY: demo
demo: build ## Three replicas on this machine, as three zones; the README says what to try.
	packaging/demo/demo.sh $(BIN)/tocsin $(DATA)/demo

# Empty where it is missing or too old for the browser UI, without which everything else can be built.
NODE := $(shell command -v npm >/dev/null && node -p 'const [a, b] = process.versions.node.split("."); +a > 20 || +a == 20 && +b >= 19 ? "yes" : ""' 2>/dev/null)

.PHONY: build
build: $(if $(NODE),ui,build-without-ui) ## Build bin/tocsin.
	go build -pgo=auto -trimpath -ldflags "$(LDFLAGS)" -o $(BIN)/tocsin ./cmd/tocsin

# For another system, out of the same sources: bin/linux-arm64/tocsin. On macOS the host's metrics of these kinds would
# need a C compiler for it.
$(BIN)/%/tocsin: FORCE $(if $(NODE),ui)
	GOOS=$(word 1,$(subst -, ,$*)) GOARCH=$(word 2,$(subst -, ,$*)) go build $(if $(filter darwin-%,$*),-tags=slicelabels$(comma)nofilesystem$(comma)nomeminfo$(comma)nodiskstats$(comma)nopowersupplyclass) -pgo=auto -trimpath -ldflags "$(LDFLAGS)" -o $@ ./cmd/tocsin

.PHONY: FORCE
FORCE:

.PHONY: build-without-ui
build-without-ui:
	@[ -e $(UI) ] || echo "There is no Node.js 20.19 or later with npm: this binary will be without the browser UI, but for its home page." >&2

# The page is what the build writes last.
UI         := web/ui/dist/index.html.gz
UI_MODULES := web/ui/node_modules/.package-lock.json
UI_SOURCES := $(shell find web/ui/src -type f) $(wildcard web/ui/*.json web/ui/*.mjs web/ui/*.ts web/ui/index.html)
.PHONY: ui
ui: $(UI) ## Build the browser UI, which the next build of bin/tocsin has in it.

$(UI): $(UI_MODULES) $(UI_SOURCES)
	npm --prefix web/ui run --silent build

$(UI_MODULES): web/ui/package-lock.json
	@[ -n "$(NODE)" ] || { echo "The browser UI needs Node.js 20.19 or later, with npm." >&2; exit 1; }
	npm --prefix web/ui ci --no-audit --no-fund --loglevel=error
	@touch $@

##@ Package

# This machine's own is what `make build` makes; one of another architecture is built without its compiler or tools.
NATIVE := linux-$(shell go env GOHOSTARCH)
ARCH   ?= $(NATIVE:linux-%=%)
binary  = $(if $(filter $(NATIVE),$(1)),$(BIN)/tocsin,$(BIN)/$(1)/tocsin)
build-of = $(if $(filter $(NATIVE),$(1)),build,$(BIN)/$(1)/tocsin)

.PHONY: deb
deb: $(call build-of,linux-$(ARCH)) ## Build bin/deb/tocsin_VERSION_ARCH.deb (ARCH=amd64 or arm64); needs debhelper and Python.
	packaging/deb.sh $(call binary,linux-$(ARCH)) $(ARCH) $(BIN)/deb

.PHONY: apt-repo
apt-repo: deb ## Add the package to the signed repository bin/apt (APT_KEY=KEY; without one, a key made to try it out).
	packaging/apt-repo.sh $(BIN)/apt $$(ls $(BIN)/deb/*.deb)

TARS := $(NATIVE) $(filter-out $(NATIVE),linux-amd64 linux-arm64) darwin-arm64
.PHONY: tar
tar: $(foreach t,$(TARS),$(call build-of,$(t))) ## Build bin/tar/tocsin_VERSION_OS_ARCH.tar.gz with checksums, for Linux, and macOS to try it out.
	@set -e; v=$$(packaging/version.sh); rm -rf $(BIN)/tar; $(foreach t,$(TARS),packaging/tar.sh $(call binary,$(t)) $(subst -, ,$(t)) $$v $(BIN)/tar;)

##@ Test

# One package after the other: many tests are about what happens when something does not answer in time.
.PHONY: test
test: test-deps ## Install what the tests need, and run everything with the race detector.
	$(MAKE) test-ui
	CGO_ENABLED=1 go test -race -p 1 -timeout 25m $(PKGS)
	$(MAKE) e2e
	$(MAKE) install-test

.PHONY: test-ui
test-ui: ui ## The tests of the browser UI's logic. What was built is tested by the Go tests after it.
	npm --prefix web/ui run --silent test

.PHONY: e2e
e2e: build $(THANOS) $(S3) ## End to end: the real binary against real neighbours, and a browser against it.
	TOCSIN=$(CURDIR)/$(BIN)/tocsin THANOS=$(CURDIR)/$(THANOS) VERSITYGW=$(CURDIR)/$(S3) go test -count=1 -timeout 45m -parallel 4 $$(go list ./e2e/... | grep -v /e2e/install)

# The package on machines of their own; as root, for there are no machines otherwise.
.PHONY: install-test
install-test: deb $(S3) ## The Debian package on fresh machines under systemd: install, upgrade, remove, cloud-init (as root).
	VERSITYGW=$(CURDIR)/$(S3) TOCSIN_DEB=$$(ls $(CURDIR)/$(BIN)/deb/tocsin_*_$(ARCH).deb) go test -count=1 -timeout 20m ./e2e/install

# The browser tests take pictures of every page in every state, light and dark, wide and narrow. Two of them are the README's.
.PHONY: screenshots
screenshots: build test-deps ## Take the pictures of the README anew (all of them: web/ui/e2e/screenshots).
	TOCSIN=$(CURDIR)/$(BIN)/tocsin CI=true go test -count=1 -timeout 15m -run '^TestBrowser' ./e2e/
	cp web/ui/e2e/screenshots/readme-query.png docs/images/query.png
	cp web/ui/e2e/screenshots/readme-cluster.png docs/images/cluster.png

# The neighbours are Debian's own packages, and the race detector needs a C compiler. Their services must not start,
# whatever runs as init: the tests run them on ports of their own.
TEST_DEPS := prometheus prometheus-alertmanager prometheus-node-exporter python3-aiosmtpd python3-swift memcached iproute2 chromium gcc libc6-dev
# What packs it, checks the package, and makes machines to install it on.
TEST_DEPS += debhelper dpkg-dev lintian file apt-utils gpg gpg-agent systemd mmdebstrap systemd-container nftables e2fsprogs mount
# However it was installed, node is node.
TEST_DEPS += $(if $(shell command -v npm),,nodejs npm)
.PHONY: test-deps
test-deps:
	@dpkg-query -W -f '$${db:Status-Status}\n' $(TEST_DEPS) 2>/dev/null | grep -c '^installed$$' | grep -qx $(words $(TEST_DEPS)) || { \
	  set -e; sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	  [ ! -d /run/systemd/system ] || $$sudo systemctl mask --runtime $(filter prometheus% memcached,$(TEST_DEPS)); \
	  $$sudo apt-get update -qq; \
	  $$sudo env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq --no-install-recommends $(TEST_DEPS); }

.PHONY: fuzz
fuzz: ## Run every fuzz target for a while (FUZZTIME=30s each).
	@set -e; for f in $$(grep -rlE '^func Fuzz' --include='*_test.go' --exclude-dir=node_modules appliance web); do \
	  for t in $$(sed -nE 's/^func (Fuzz[A-Za-z0-9_]+)\(.*/\1/p' $$f); do \
	    echo "== $$t in $$(dirname $$f)"; go test -run '^$$' -fuzz "^$$t$$" -fuzztime $(or $(FUZZTIME),30s) ./$$(dirname $$f); done; done

# The generated code is committed, so that building needs no compiler for it.
.PHONY: proto
proto: ## Generate the messages between replicas anew; needs protoc, protoc-gen-go 1.36.11 and protoc-gen-go-grpc 1.6.0.
	protoc --proto_path=. --go_out=. --go_opt=paths=source_relative \
	  --go-grpc_out=. --go-grpc_opt=paths=source_relative,require_unimplemented_servers=false $$(git ls-files '*.proto')

##@ Check

.PHONY: check
check: check-static test check-clean ## What CI runs.

.PHONY: check-static
check-static: check-format check-ui lint check-docs check-package ## Formatting, linters, generated documents, and the package, without running tests.

.PHONY: check-format
check-format:
	@files=$$(git ls-files '*.go' | xargs gofmt -l); [ -z "$$files" ] || { echo "not gofmt'ed:"; echo "$$files"; exit 1; }

.PHONY: check-ui
check-ui: $(UI_MODULES)
	npm --prefix web/ui run --silent check

.PHONY: lint
lint: $(LINT) ## golangci-lint over everything.
	$(LINT) run $(PKGS) ./e2e/...

$(LINT): .ci/tools/go.mod .ci/tools/go.sum
	GOFLAGS=-buildvcs=false go build -C .ci/tools -o $(CURDIR)/$(LINT) github.com/golangci/golangci-lint/v2/cmd/golangci-lint

.PHONY: docs
docs: build ## Write the generated manuals.
	$(BIN)/tocsin docs cli > docs/cli.md
	$(BIN)/tocsin docs config > docs/configuration.md
	$(BIN)/tocsin docs man > packaging/tocsin.1
	$(BIN)/tocsin docs bash > packaging/completion/tocsin
	$(BIN)/tocsin docs zsh > packaging/completion/_tocsin

.PHONY: check-docs
check-docs: build
	@for mf in cli:docs/cli.md config:docs/configuration.md man:packaging/tocsin.1 bash:packaging/completion/tocsin zsh:packaging/completion/_tocsin; do f=$${mf#*:}; \
	  $(BIN)/tocsin docs $${mf%%:*} | diff -u $$f - || { echo "$$f is not what the program says: run make docs"; exit 1; }; done

.PHONY: check-package
check-package: test-deps deb
	packaging/check.sh $$(ls $(BIN)/deb/tocsin_*_$(ARCH).deb)

.PHONY: check-clean
check-clean:
	@out=$$(git status --porcelain); [ -z "$$out" ] || { echo "the work tree is not clean after the tests:"; echo "$$out"; exit 1; }

##@ Measure

.PHONY: bench
bench: build peers test-deps ## Side by side with stock Prometheus and Alertmanager; prints ratios (BENCHFLAGS=-help).
	TOCSIN=$(CURDIR)/$(BIN)/tocsin PROMETHEUS=$(CURDIR)/$(BIN)/peers/prometheus THANOS=$(CURDIR)/$(THANOS) VERSITYGW=$(CURDIR)/$(S3) go run ./e2e/bench $(BENCHFLAGS)

.PHONY: pgo
pgo: build peers test-deps ## Renew the profile that the compiler optimises by.
	TOCSIN=$(CURDIR)/$(BIN)/tocsin go run ./e2e/bench -pgo cmd/tocsin/default.pgo

.PHONY: peers
peers: $(THANOS) $(S3) ## Build the stock peers, which are not Debian's version, into bin/peers.
	GOFLAGS=-buildvcs=false go build -C e2e/peers -ldflags "-s -w -X github.com/prometheus/common/version.Version=3.9.1" -o $(CURDIR)/$(BIN)/peers/ github.com/prometheus/prometheus/cmd/prometheus

# Thanos's own releases have the tag that GOFLAGS has here, so that most of this is compiled for the product anyway.
$(THANOS): e2e/peers/go.mod e2e/peers/go.sum
	go build -C e2e/peers -ldflags "-s -w -X github.com/prometheus/common/version.Version=0.42.4" -o $(CURDIR)/$(THANOS) github.com/thanos-io/thanos/cmd/thanos

# Stripped, and no part of the product: what it shares with it in the build cache is the standard library.
$(S3): e2e/s3/go.mod e2e/s3/go.sum
	go build -C e2e/s3 -ldflags "-s -w" -o $(CURDIR)/$(S3) github.com/versity/versitygw/cmd/versitygw

##@ Other

.PHONY: clean
clean: ## Remove what was built.
	rm -rf $(BIN) web/ui/build web/ui/node_modules
	find web/ui/dist -mindepth 1 ! -name .keep -delete

.PHONY: help
help: ## List the targets.
	@awk 'BEGIN {FS = ":.*##"} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z0-9-]+:.*##/ {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
