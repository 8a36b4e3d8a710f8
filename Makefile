# One command each; every one sets up what it needs first. `make help` lists them.
#   LIBTORCH=/path   use this LibTorch instead of the one in .venv
#   JOBS=n           compile jobs at once (one that includes torch/torch.h takes 1.4 GB); default 2
#   WERROR=ON|OFF    warnings are errors; default AUTO: with GCC 12, which CI builds with
#   TORCH='2.12.1'   for make wheel: other torches that the wheel gets a library for, as versions or folders
#   CTEST_ARGS=...   more arguments to ctest, e.g. CTEST_ARGS='-L base'

JOBS ?= 2
WERROR ?= AUTO

# Debian's own first: a shim in front of it may be there without what it stands for
CMAKE = $(shell command -v /usr/bin/cmake || command -v cmake)
CTEST = $(shell command -v /usr/bin/ctest || command -v ctest)
NINJA = $(shell command -v /usr/bin/ninja || command -v ninja)
CLANG_FORMAT = $(shell command -v clang-format-14 || command -v clang-format)
SOURCES = $(shell git ls-files --cached --others --exclude-standard '*.h' '*.cc')

configure = $(CMAKE) --preset $(1) -DCMAKE_MAKE_PROGRAM=$(NINJA) -DREFRAIN_WERROR=$(WERROR) >/dev/null
compile = $(CMAKE) --build $(1) --parallel $(JOBS)
# Tests run side by side: threads of OpenMP that spin for others which have no core make them twenty times slower.
test = cd $(1) && OMP_WAIT_POLICY=passive $(CTEST) --output-on-failure --parallel $(JOBS) $(CTEST_ARGS)

.PHONY: help setup build wheel demo test core-build core asan asan-subset soak mutations bench cost peers limits \
  plans docs format format-check tidy tidy-changed ci clean
.NOTPARALLEL:

help:
	@echo 'make demo    train a GPT on text within a memory limit at which the baseline fails'
	@echo 'make test    build and run all tests'
	@echo 'make core    the tests that need no LibTorch'
	@echo 'make asan    the tests under AddressSanitizer and UndefinedBehaviorSanitizer'
	@echo 'make asan-subset   the part of them that CI runs, in a tenth of the time'
	@echo 'make soak    random programs from new seeds: SOAK_PROGRAMS=20000 SOAK_MINUTES=30 SOAK_SEED=n'
	@echo 'make mutations   breaks each rule of the tape and expects a test to fail'
	@echo 'make bench   the benchmarks;  make peers   side by side with torch.utils.checkpoint'
	@echo 'make cost    counts the instructions that an operator costs and compares with the committed counts'
	@echo 'make limits  what memory limits cost, and which heuristic costs least'
	@echo 'make plans   planners beside each other on traced steps, with what is proven'
	@echo 'make wheel   the Python wheel, in dist/, for the torch of .venv and those in TORCH='
	@echo 'make docs    the site of guides and API reference, in build-docs'
	@echo 'make ci      all that a change must pass, as CI runs it: about 40 minutes'
	@echo 'make format | format-check | tidy | tidy-changed | clean'

setup:
	@scripts/setup

build: setup
	@$(call configure,release)
	@$(call compile,build)

# builds the libraries and nothing else
wheel: setup
	@$(call configure,release)
	@$(call compile,build) --target refrain refrain_report_library
	@JOBS=$(JOBS) scripts/wheel $(TORCH)

# builds the tool and nothing else
demo: setup
	@$(call configure,release)
	@$(call compile,build) --target refrain_cli
	@scripts/demo

test: build
	@$(call test,build)

core-build: setup
	@$(call configure,core)
	@$(call compile,build-core)

core: core-build
	@$(call test,build-core)

asan: setup
	@$(call configure,asan-ubsan)
	@$(call compile,build-asan)
	@$(call test,build-asan)

asan-subset: setup
	@$(call configure,asan-subset)
	@$(call compile,build-asan-subset) --target $$(scripts/ci-asan --targets)
	@JOBS=$(JOBS) scripts/ci-asan build-asan-subset

soak: build
	@JOBS=$(JOBS) tests/fuzz/soak

mutations: build
	@tests/mutations/run

bench: build
	@set -e; found=; for b in build/bin/bench_*; do [ -x "$$b" ] || continue; found=1; echo "== $$b"; "$$b"; done; \
	  [ -n "$$found" ] || { echo 'bench: found no build/bin/bench_*; is LibTorch there and REFRAIN_BUILD_APPS on?' >&2; exit 1; }

cost: build
	@bench/cost/run --check

peers: build
	@bench/peers/run

limits: build
	@bench/limits/run

plans: build
	@bench/plan/run

format:
	@$(CLANG_FORMAT) -i $(SOURCES)

format-check:
	@$(CLANG_FORMAT) --dry-run -Werror $(SOURCES)

# they need compile commands, one a source, and nothing built
tidy tidy-changed: setup
	@scripts/setup --dev
	@$(call configure,release) -B build-tidy -DREFRAIN_UNITY=OFF
	@scripts/ci-tidy --build build-tidy --jobs $(JOBS) $(if $(filter tidy,$@),--all)

docs:
	@scripts/docs

ci:
	@.ci/run

clean:
	@rm -rf build build-asan build-asan-subset build-core build-dev build-docs build-tidy
