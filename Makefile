# The front door. `make demo` shows the whole line on the bundled model; `make test` runs every test.
JOBS ?= 2
.DEFAULT_GOAL := help
.PHONY: help build demo test fuzz soak bench format tidy clean

help:
	@echo "make demo    build, quantize the bundled model, serve it, make one tool call"
	@echo "make test    build and run all tests"
	@echo "make build   build/release/nibble"
	@echo "make fuzz    each fuzz target for 10 minutes"
	@echo "make soak    the server under load: 200 streams for a minute, 5,000 idle connections"
	@echo "make bench   the benchmarks, with their tables"

build:
	@tools/setup.sh build
	@cmake --preset release >/dev/null
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

fuzz:
	@tools/setup.sh test
	@cmake --preset fuzz >/dev/null
	@cmake --build --preset fuzz --target fuzz_targets -j $(JOBS)
	@tools/fuzz.sh build/fuzz/fuzz 600

bench:
	@tools/setup.sh test
	@cmake --preset release -DNIBBLE_BENCHMARKS=ON >/dev/null
	@cmake --build --preset release -j $(JOBS)
	@tools/bench.sh build/release

soak: build
	@python3 benchmarks/serve_load.py build/release/nibble

format:
	@git ls-files 'src/*.h' 'src/*.cc' 'tests/*.h' 'tests/*.cc' 'fuzz/*.cc' 'benchmarks/*.cc' | xargs clang-format -i

tidy:
	@python3 tools/tidy.py

clean:
	@rm -rf build
