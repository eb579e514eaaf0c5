# Everything runs in environments of this folder (.venv, .venv-milvus, .timm, .peers). `make` alone lists what
# there is. pip's own settings (PIP_INDEX_URL, PIP_FIND_LINKS, ...) work as they always do.

# The Python to build the environment with: the first of these that starts and is new enough.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)

# Which of PyTorch's builds to take. Empty: the registry's, on Linux gigabytes of CUDA.
# cpu: the small one. cu126, cu128, ...: that CUDA. Or the full address of an index.
TORCH_INDEX ?=
TORCH_URL = $(if $(findstring ://,$(TORCH_INDEX)),$(TORCH_INDEX),https://download.pytorch.org/whl/$(TORCH_INDEX))

# What is compiled when it is imported is kept in the environments of this folder.
unexport PYTHONDONTWRITEBYTECODE

EXTRAS = notebooks,openvino,server,test
PY = .venv/bin/python

# Test processes side by side: more than processors, because many tests wait for servers.
PYTEST_WORKERS ?= 5
PYTEST_ARGS ?=

.DELETE_ON_ERROR:
.PHONY: help env demo test lab app lint bench soak lock clean

help: ## list the targets (this)
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 16
	@echo
	@echo '  Without an NVIDIA GPU, add TORCH_INDEX=cpu the first time: make demo TORCH_INDEX=cpu'

env: .venv/stamp ## install everything into .venv, as pinned in requirements.lock

$(PY):
	@test -n '$(PYTHON)' || { echo 'Python 3.11 or newer is needed: install it, or name it with PYTHON=...' >&2; exit 1; }
	@$(PYTHON) -m venv .venv || { echo 'On Debian and Ubuntu, install python3-venv.' >&2; exit 1; }

.venv/stamp: pyproject.toml requirements.lock | $(PY)
	@echo 'Installing into .venv: about 1.3 GB, more with CUDA. Once.'
# torch by itself: that index holds PyTorch's packages, but not these versions of all the others.
	$(if $(TORCH_INDEX),$(PY) -m pip install --no-deps -c requirements.lock --index-url '$(TORCH_URL)' torch)
# Uncompiled: Python compiles what is imported, which is a small part and takes seconds, not half a minute.
	$(PY) -m pip install --no-compile -c requirements.lock -e '.[$(EXTRAS)]'
	@touch $@

# A real Milvus server for the tests, in an environment of its own: it wants other versions. There
# is one for Linux on x86-64 only; without it, the tests that need it are skipped and say so.
.venv-milvus/stamp: Makefile
	@test "$$(uname -sm)" = 'Linux x86_64' || { echo 'No Milvus server for tests on this system.'; exit 0; }; \
	{ test -x .venv-milvus/bin/python || $(PYTHON) -m venv .venv-milvus; } \
	&& .venv-milvus/bin/python -m pip install -q --no-compile milvus==2.3.5 \
	&& touch $@ \
	|| echo 'The Milvus server for tests could not be installed: tests that need it will be skipped.'

# timm, open_clip and torchvision for the tests of their models, apart from what imgsearch needs:
# beside the small build of torch, torchvision's compiled operators do not load, and the tests do
# without them.
.timm/stamp: Makefile | $(PY)
	@rm -rf .timm
	@{ $(PY) -m pip install -q --no-compile --no-deps --target .timm \
	timm==1.0.31 torchvision==0.28.0 open_clip_torch==3.3.0 ftfy==6.3.1 regex==2026.11.19 && touch $@; } \
	|| { rm -rf .timm; echo 'timm and open_clip could not be installed: their tests will be skipped.'; }

demo: env ## ingest the sample and search it, in a minute, with nothing to download but packages
	@$(PY) scripts/demo.py

# Compile once what all test processes import: each would compile it by itself at the same time.
.venv/compiled: .venv/stamp
	@$(PY) -m pytest -qq --collect-only > $@

.PHONY: test-env
test-env:
	@$(MAKE) --no-print-directory -j3 .venv/compiled .venv-milvus/stamp .timm/stamp

test: test-env ## run the tests
	$(PY) -m pytest -n $(PYTEST_WORKERS) -m 'not soak' $(PYTEST_ARGS)

lab: export JUPYTER_CONFIG_PATH := $(CURDIR)/jupyter:$(JUPYTER_CONFIG_PATH)
lab: env ## open JupyterLab on 127.0.0.1, with a token
	$(PY) -m jupyterlab $(LAB_ARGS)

app: env ## start the web server and its page on 127.0.0.1, with a token
	$(PY) -m imgsearch.server $(APP_ARGS)

lint: env ## check style, formatting, and that no notebook holds outputs
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m nbstripout --verify --keep-id --extra-keys 'metadata.papermill cell.metadata.papermill' notebooks/*.ipynb

# Another library to be measured beside this one, apart from what imgsearch needs: it brings
# torchvision. Without what it requires, since .venv has most of that.
.peers/stamp: Makefile .venv/stamp
	@rm -rf .peers
	@{ $(PY) -m pip install -q --no-deps --target .peers imagededup==0.3.3.post2 torchvision==0.28.0 \
	scikit-learn==1.9.1 joblib==1.6.0 threadpoolctl==3.8.0 PyWavelets==1.9.0 cloudpickle==3.1.2 narwhals==2.29.0 \
	&& touch $@; } || { rm -rf .peers; echo 'imagededup could not be installed: it will not be compared.'; }

bench: env .venv-milvus/stamp .peers/stamp ## measure what the README reports
	$(PY) -m benchmarks $(BENCH_ARGS)

soak: test-env ## the long robustness tests, many rounds each; their figures go to output/soak.md
	$(PY) -m pytest -n $(PYTEST_WORKERS) -m soak --timeout 0 $(PYTEST_ARGS)

lock: ## write requirements.lock anew: the newest versions that pyproject.toml allows
	rm -rf build/lock
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install -e '.[$(EXTRAS)]'
	build/lock/bin/python -m pip check
	@{ sed -n '/^#/p' requirements.lock; \
	build/lock/bin/python -m pip freeze --all --exclude-editable \
	| sed 's/+[a-z0-9.]*$$//' | grep -v -i -e '^nvidia-' -e '^cuda-' -e '^triton==' -e '^pip==' -e '^wheel==' -e '^#'; } > build/requirements.lock
	mv build/requirements.lock requirements.lock

clean: ## remove the environments, caches and the demo's output
	rm -rf .venv .venv-milvus .timm .peers build imgsearch.egg-info output/demo .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
