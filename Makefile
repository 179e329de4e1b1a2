# The front door. `make demo` shows the whole line on the bundled model; `make test` runs every test.
JOBS ?= 2
# GPU architectures of the release build: those of the cards here. ARCHS="75;80;86;89;90a": all, ARCHS=: none.
ARCHS ?= $(shell tools/gpu_archs.sh)
RELEASE_CUDA = $(if $(ARCHS),-DNIBBLE_CUDA=AUTO '-DNIBBLE_CUDA_ARCHS=$(ARCHS)',-DNIBBLE_CUDA=OFF)
.DEFAULT_GOAL := help
.PHONY: help build demo test sanitize soak fuzz bench fidelity format tidy clean

help:
	@echo "make demo    build, quantize the bundled model, serve it, make one tool call"
	@echo "make test    build and run all tests"
	@echo "make build   build/release/nibble, for the GPUs of this machine (ARCHS=\"75;80;86;89;90a\": for all)"
	@echo "make sanitize  server, network and engine tests under address, undefined and thread sanitizers"
	@echo "make fuzz    each fuzz target for 10 minutes"
	@echo "make soak    a million scheduler steps, quantize killed 20 times, the server under load"
	@echo "make bench   the benchmarks, with their tables"
	@echo "make fidelity  docs/fidelity.md: what each recipe loses (PYTHON=... adds llm-compressor)"

build:
	@tools/setup.sh build
	@cmake --preset release $(RELEASE_CUDA) >/dev/null
	@cmake --build --preset release -j $(JOBS)

demo: build
	@tools/demo.sh build/release/nibble

test:
	@tools/setup.sh test
	@cmake --preset test >/dev/null
	@cmake --build --preset test -j $(JOBS)
	@cmake --preset fuzz >/dev/null
	@cmake --build --preset fuzz --target fuzz_targets -j $(JOBS)
	@ctest --test-dir build/test --output-on-failure -j $(JOBS)
	@tools/fuzz.sh build/fuzz/fuzz 30

SANITIZED = net_tests server_tests engine_tests
sanitize:
	@tools/setup.sh test
	@for kind in asan tsan; do \
	  cmake --preset $$kind >/dev/null && cmake --build --preset $$kind -j $(JOBS) --target $(SANITIZED) || exit 1; \
	  for test in $(SANITIZED); do tools/sanitized.sh build/$$kind/tests/$$test || exit 1; done; \
	done

soak:
	@tools/setup.sh test
	@cmake --preset test >/dev/null
	@cmake --build --preset test -j $(JOBS) --target engine_tests nibble
	@NIBBLE_SIMULATION_STEPS=1000000 build/test/tests/engine_tests --gtest_filter='SchedulerSimulation.*'
	@tests/quant/kill_resume_test.sh build/test/nibble 20
	@python3 benchmarks/serve_load.py build/test/nibble --seconds 1800 --mixed
	@tests/e2e/run.sh build/e2e-venv fuzz_api.py build/test/nibble models/nibble-demo-14m 600

fuzz:
	@tools/setup.sh test
	@cmake --preset fuzz >/dev/null
	@cmake --build --preset fuzz --target fuzz_targets -j $(JOBS)
	@tools/fuzz.sh build/fuzz/fuzz 600

bench:
	@tools/setup.sh test
	@cmake --preset release $(RELEASE_CUDA) -DNIBBLE_BENCHMARKS=ON >/dev/null
	@cmake --build --preset release -j $(JOBS)
	@tools/bench.sh build/release

fidelity: build
	@tools/fidelity_table.sh build/release/nibble $(PYTHON) >build/fidelity.md
	@mv build/fidelity.md docs/fidelity.md

format:
	@git ls-files 'src/*.h' 'src/*.cc' 'src/*.cu' 'src/*.cuh' 'tests/*.h' 'tests/*.cc' 'fuzz/*.cc' 'benchmarks/*.cc' 'benchmarks/*.h' 'benchmarks/*.cu' | xargs clang-format -i

tidy:
	@python3 tools/tidy.py

clean:
	@rm -rf build
