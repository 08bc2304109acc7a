SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Every module of the repository that has code. Those of the tools only pin, but for one.
MODULES := $(shell find . -name go.mod -not -path './tools/*' -not -path '*/testdata/*' -not -path './.*/*' -exec dirname {} \; | sort) ./tools/manifests

# What test does for each but the root's.
TESTS := $(patsubst ./%,test/%,$(filter-out .,$(MODULES)))

# The tools, pinned by modules of their own. `go tool` builds each once into Go's cache.
BUF         = go tool -modfile=tools/buf/go.mod buf
STATICCHECK = go tool -modfile=$(CURDIR)/tools/lint/go.mod staticcheck
BENCHSTAT   = go tool -modfile=tools/benchstat/go.mod benchstat

GOTEST      = UNDERSTUDY_SEEDS=$(SEEDS) UNDERSTUDY_EVERY=$(EVERY) go test -race $(TESTFLAGS)

TESTFLAGS  ?= -timeout 15m
FUZZTIME   ?= 10m
SEEDS      ?= 2
EVERY      ?= 13
BENCHTIME  ?= 200ms
BENCHFLAGS ?=
MEM        ?= 4096
SCOPES     ?=
RULE       ?=
DURATION   ?= 2m
CHAOSFLAGS ?=

.PHONY: help check test $(TESTS) faults simulate explore mutants chaos lint breaking house house-check house-tighten \
	generate check-generated bench \
	bench-quick bench-revisions bench-peers bench-scale bench-failover bench-compare fuzz fuzz-keep

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

check: ## what CI runs: lint, house-check, check-generated and test
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory house-check
	@$(MAKE) --no-print-directory check-generated
	@$(MAKE) --no-print-directory test

# e2e's processes have deadlines, so it is tested alone. The other modules wait more than they compute: so two are tested
# at a time, and what each prints comes in one piece, when it has ended.
test: ## go test -race in every module
	@echo "test: ."
	@$(GOTEST) ./...
	@$(MAKE) --no-print-directory test/e2e
	@$(MAKE) --no-print-directory -j2 --output-sync=target $(filter-out test/e2e,$(TESTS))
	@echo "test: simulation's seeds repeat (without -race, which makes the scheduler random)"
	@go -C simulation test -count=1 -run '^TestRepeats$$' .

# Its tests share nothing; Kubernetes' types take a minute to build, and with -race another.
test/tools/manifests: GOTEST = go test

$(TESTS): test/%:
	@echo "test: ./$*"
	@cd $* && $(GOTEST) ./...

faults: ## kill and cut at every message, in fake time; make test takes a sample (SEEDS, EVERY)
	go test -timeout 60m -v ./understudytest

simulate: SEEDS = 200
simulate: ## whole groups under the faults of SEEDS=n seeds (200), in virtual time; SEED=k plays one again, with its trace
	@folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	go -C simulation test -c -o "$$folder/simulation.test" .; \
	"$$folder/simulation.test" -test.timeout 0 \
		$(if $(SEED),-test.run '^TestSeed$$' -seed $(SEED),-test.run '^TestSimulate$$' -seeds $(SEEDS)) $(SIMULATEFLAGS)

explore: ## visit every state of small groups, within MEM (4096) MiB; SCOPES="detached …" for some; make test takes a share
	go run ./internal/explore/cmd/explore -mem $(MEM) $(SCOPES)

mutants: ## take each rule away, and explore until that shows; RULE="R12.3" for some
	go run -tags mutants ./internal/explore/cmd/mutants -mem $(MEM) $(RULE)

chaos: ## real processes killed, stopped and cut off from each other for DURATION (2m); SEED=k draws the same faults again
	@go -C e2e run ./cmd/chaos -duration $(DURATION) $(if $(SEED),-seed $(SEED)) $(CHAOSFLAGS)

lint: ## gofmt, go vet and staticcheck in every module; buf lint, buf breaking
	@unformatted=$$(gofmt -l .); \
	if [ -n "$$unformatted" ]; then printf 'gofmt -w these:\n%s\n' "$$unformatted"; exit 1; fi
	@for m in $(MODULES); do \
		echo "lint: $$m"; \
		go -C $$m vet ./...; \
		(cd $$m && $(STATICCHECK) ./...); \
	done
	@$(BUF) lint
	@$(MAKE) --no-print-directory breaking

breaking: # part of lint; BREAKING_AGAINST=<commit> to choose what to compare with
	@tools/breaking.sh $(BUF)

house: ## how the library is built: a table; BASE=<commit> puts that beside it, OF=<package> takes one apart
	@go run ./tools/house $(if $(BASE),-base $(BASE)) $(if $(OF),-of $(OF))

house-check: ## fail when a goal for that is missed (tools/house/goals.txt)
	@echo "house-check"
	@go run ./tools/house -check

house-tighten: # take the goals to what was reached
	@go run ./tools/house -tighten

generate: ## generate the code of proto/
	@$(BUF) generate

check-generated: ## fail unless the committed code of proto/ is what generate makes
	@tools/check-generated.sh $(BUF)

bench: ## Go benchmarks of the root module, then calls against plain gRPC (bench/), BENCHFLAGS="-callers 64 …"
	@go test -run '^$$' -bench . -benchtime $(BENCHTIME) ./...
	@go -C bench run . $(BENCHFLAGS)

bench-compare: ## the Go benchmarks of the root module at BASE=<commit> (HEAD) and as they are now, compared by benchstat; COUNT, BENCH
	@BENCHTIME=$(BENCHTIME) tools/bench-compare.sh $(BENCHSTAT)

bench-quick: ## within 2 minutes, name=value lines: ratios to plain gRPC and to hashicorp/raft
	@go -C bench run . quick $(BENCHFLAGS)

bench-revisions: ## calls at BASE=<commit> (HEAD) and as they are now, in turn: fails if they cost more, 4 minutes
	@go -C bench run . revisions -base $(or $(BASE),HEAD) $(BENCHFLAGS)

bench-peers: ## beside other systems, at several loads, delays and sizes of the group: writes bench/RESULTS.md in 14 minutes
	@go -C bench run . peers $(BENCHFLAGS)

bench-scale: ## sessions, groups, sizes of states and messages: writes bench/RESULTS.md in 5 minutes
	@go -C bench run . scale $(BENCHFLAGS)

bench-failover: ## primaries killed and stopped, beside other systems: writes bench/RESULTS.md in 22 minutes
	@go -C bench run . failover $(BENCHFLAGS)

fuzz: ## run each fuzz target for FUZZTIME (10m); make test runs their seeds
	@for m in $(MODULES); do \
		go -C $$m test -list '^Fuzz' ./... \
		| awk '/^Fuzz/ {name[n++] = $$1} /^ok/ {for (i = 0; i < n; i++) print $$2, name[i]; n = 0}' \
		| while read -r pkg name; do \
			echo "fuzz: $$pkg $$name"; \
			go -C $$m test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) "$$pkg" </dev/null; \
		done; \
	done

fuzz-keep: ## copy what fuzzing has found worth keeping to testdata/, where make test runs it, each decoder's
	@cache=$$(go env GOCACHE)/fuzz/$$(go list -m); \
	for target in internal/wire/Fuzz{ParseHeader,SealOpen,Unpack,Assembler,RunFromProto} transport/Fuzz{Stream,ReplyHeader,Target} \
		replica/Fuzz{Followed,Take,Acknowledged,History} election/FuzzDecode; do \
		[ -d "$$cache/$$target" ] || continue; \
		kept=$$(dirname "$$target")/testdata/fuzz/$$(basename "$$target"); \
		mkdir -p "$$kept"; \
		cp -n "$$cache/$$target"/* "$$kept"/; \
	done
