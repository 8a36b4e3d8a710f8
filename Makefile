# One command each; every one sets up what it needs first. `make help` lists them.
#   LIBTORCH=/path   use this LibTorch instead of the one in .venv
#   JOBS=n           compile jobs at once (one that includes torch/torch.h takes 1.4 GB); default 2
#   WERROR=ON        warnings are errors
#   CTEST_ARGS=...   more arguments to ctest, e.g. CTEST_ARGS='-L base'

JOBS ?= 2
WERROR ?= OFF

# Debian's own first: a shim in front of it may be there without what it stands for
CMAKE = $(shell command -v /usr/bin/cmake || command -v cmake)
CTEST = $(shell command -v /usr/bin/ctest || command -v ctest)
NINJA = $(shell command -v /usr/bin/ninja || command -v ninja)
SOURCES = $(shell git ls-files --cached --others --exclude-standard '*.h' '*.cc')

configure = $(CMAKE) --preset $(1) -DCMAKE_MAKE_PROGRAM=$(NINJA) -DREFRAIN_WERROR=$(WERROR) >/dev/null
compile = $(CMAKE) --build $(1) --parallel $(JOBS)
# Tests run side by side: threads of OpenMP that spin for others which have no core make them twenty times slower.
test = cd $(1) && OMP_WAIT_POLICY=passive $(CTEST) --output-on-failure --parallel $(JOBS) $(CTEST_ARGS)

.PHONY: help setup build demo test core asan soak mutations bench peers limits plans format format-check tidy clean
.NOTPARALLEL:

help:
	@echo 'make demo    train a GPT on text within a memory limit at which plain training fails'
	@echo 'make test    build and run all tests'
	@echo 'make core    the tests that need no LibTorch'
	@echo 'make asan    the tests under AddressSanitizer and UndefinedBehaviorSanitizer'
	@echo 'make soak    random programs from new seeds: SOAK_PROGRAMS=20000 SOAK_MINUTES=30 SOAK_SEED=n'
	@echo 'make mutations   breaks each rule of the tape and expects a test to fail'
	@echo 'make bench   the benchmarks;  make peers   side by side with torch.utils.checkpoint'
	@echo 'make limits  what memory limits cost, and which heuristic costs least'
	@echo 'make plans   planners beside each other on traced steps, with what is proven'
	@echo 'make format | format-check | tidy | clean'

setup:
	@scripts/setup

build: setup
	@$(call configure,release)
	@$(call compile,build)

# builds the tool and nothing else
demo: setup
	@$(call configure,release)
	@$(call compile,build) --target refrain_cli
	@scripts/demo

test: build
	@$(call test,build)

core: setup
	@$(call configure,core)
	@$(call compile,build-core)
	@$(call test,build-core)

asan: setup
	@$(call configure,asan-ubsan)
	@$(call compile,build-asan)
	@$(call test,build-asan)

soak: build
	@JOBS=$(JOBS) tests/fuzz/soak

mutations: build
	@tests/mutations/run

bench: build
	@set -e; found=; for b in build/bin/bench_*; do [ -x "$$b" ] || continue; found=1; echo "== $$b"; "$$b"; done; \
	  [ -n "$$found" ] || { echo 'bench: found no build/bin/bench_*; is LibTorch there and REFRAIN_BUILD_APPS on?' >&2; exit 1; }

peers: build
	@bench/peers/run

limits: build
	@bench/limits/run

plans: build
	@bench/plan/run

format:
	@clang-format -i $(SOURCES)

format-check:
	@clang-format --dry-run -Werror $(SOURCES)

tidy: build
	@command -v clang-tidy >/dev/null || { echo 'tidy: found no clang-tidy: apt-get install clang-tidy' >&2; exit 1; }
	@clang-tidy -p build --quiet $(filter src/%.cc,$(SOURCES))

clean:
	@rm -rf build build-asan build-core build-dev
