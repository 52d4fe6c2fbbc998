# Thin face of CMake. `make demo` and `make test` alone do everything on a bare Debian 12 with gcc and apt.
SHELL := /bin/bash
BUILD ?= build
JOBS ?= $(shell nproc)
# Most tests of the queue wait for something: more than twice as many as processors keep these busy.
TEST_JOBS ?= $(shell echo $$((5 * $(JOBS) / 2)))
SHARED ?= $(abspath ../shared)
WERROR ?= OFF

PACKAGES := build-essential cmake ninja-build pkg-config libjansson-dev libsentencepiece-dev \
  libjpeg62-turbo-dev libpng-dev libcmocka-dev libzmq3-dev libprotobuf-c-dev protobuf-c-compiler libhiredis-dev \
  libmicrohttpd-dev libsqlite3-dev libjs-leaflet redis-server luajit
# Scenes are a gigabyte of libraries, which the demo does without: `make demo` first, then `make build` or `make test` adds them.
GEO_PACKAGES := libgdal-dev libseccomp-dev libkissfft-dev gdal-bin python3-gdal python3-rasterio
# Tests alone open the gallery in a browser, and read a Landsat pair that a package of R brings.
TEST_PACKAGES := chromium chromium-driver python3-selenium r-cran-satellite
SANITIZED := asan tsan

.PHONY: help setup build demo test test-long bench lint format install clean

help:
	@echo 'make setup      install what the build needs (Debian packages; asks for root through sudo if needed)'
	@echo 'make build      build/btcchat'
	@echo 'make demo       caption image pairs with the shipped model'
	@echo 'make test       all tests, most of them also under ASan+UBSan, those with threads under TSan'
	@echo 'make test-long  an hour of chaos and cuts, ten minutes of fuzzing a parser, besides make test'
	@echo 'make bench      speed against PyTorch and the roofs -> docs/performance.md'
	@echo 'make lint       clang-format, cppcheck and clang-tidy;  make format: mends the first'
	@echo 'make install    PREFIX=/usr/local by default'

setup:
	tools/setup.sh $(PACKAGES) $(GEO_PACKAGES)

# Set-up happens when something is missing, so that each target below works alone on a fresh machine.
$(BUILD)/.ready: CMakeLists.txt CMakePresets.json
	tools/setup.sh --if-missing $(PACKAGES)
	cmake --preset release -B $(BUILD) -DBTC_WERROR=$(WERROR) -DBTC_SHARED=$(SHARED)
	@touch $@

$(BUILD)/.ready-geo: $(BUILD)/.ready
	tools/setup.sh --if-missing $(GEO_PACKAGES)
	cmake --preset release -B $(BUILD) -DBTC_WERROR=$(WERROR) -DBTC_SHARED=$(SHARED)
	@touch $@

build: $(BUILD)/.ready-geo
	cmake --build $(BUILD) -j $(JOBS)

demo: $(BUILD)/.ready
	cmake --build $(BUILD) -j $(JOBS) --target btcchat
	tools/demo.sh $(BUILD)/btcchat $(SHARED)

test: build
	tools/setup.sh --if-missing $(TEST_PACKAGES)
	ctest --test-dir $(BUILD) -j $(TEST_JOBS) -E '^slurm$$' --output-on-failure --no-tests=error
	tools/test-sanitized.sh $(SHARED) $(JOBS) $(TEST_JOBS) $(SANITIZED)

test-long: test
	BTCCHAT_LONG=1 ctest --test-dir $(BUILD) -R '^test_(chaos_long|captions|partition|members|pipe|pipe_full)[.]' --verbose --no-tests=error
	tools/setup.sh --if-missing slurm-wlm munge && ctest --test-dir $(BUILD) -R '^slurm$$' --output-on-failure
	tools/fuzz.sh 600

bench: build
	bench/run.sh $(BUILD)

lint: build
	tools/lint.sh $(BUILD)

format:
	tools/setup.sh --if-missing clang-format
	git ls-files '*.c' '*.h' '*.cc' '*.cu' | xargs clang-format -i

PREFIX ?= /usr/local
install: build
	cmake --install $(BUILD) --prefix $(PREFIX)

clean:
	rm -rf $(BUILD)
