# make demo       set up, then train a small DaViT on handwritten digits and evaluate it (3 minutes on 2 cores)
# make demo-det   train Mask R-CNN on scenes of digits, evaluate it and draw what it finds (6 minutes on 2 cores)
# make demo-seg   train UPerNet on them, evaluate it and draw what it finds (8 minutes on 2 cores)
# make test       set up, then run every test that is not marked long; prints the time and the slowest 15
# make test-long  run the long ones too
# make attack   N=2000 hostile trials: input of every kind, kills, disks, damage, changed data, routes; SEED=1 for others
# make lint       ruff, clang-format, mypy on davit/, and which of its parts import which
# make bench-cuda on a CUDA machine: benchmarks/gpu/run.sh, kernels and models beside their peers in 12 minutes
# make figures    draw the pictures of figures/ again
# make docs       the documents as a searchable site, in output/docs
# make api        the documentation of every public class and function, in output/api
# make help       this text

PYTHON ?= python3
VENV   ?= .venv
OUTPUT ?= output/demo
API_DIR ?= output/api
N      ?= 2000
SEED   ?= 0
RUN     = $(VENV)/bin/python

# Threads sleep while they wait. Spinning, as is the default, they starve each other as soon as another program needs a core.
export OMP_WAIT_POLICY ?= PASSIVE

# pdoc documents what it finds in a module's dict, where davit.load stands from its first use on.
PDOC    = -W error::UserWarning -c "import davit; davit.load; from pdoc.__main__ import cli; cli()"
API     = davit $(addprefix davit.,app checkpoint complexity data doctor embed engine predict probe visualize)

# One thread a process, so results do not depend on the number of cores. Three processes on two cores: some tests wait for
# jobs. Files in the order of tests/conftest.py, since those with few tests, which xdist puts last, are the slow ones.
PYTEST  = OMP_NUM_THREADS=1 $(RUN) -m pytest -n 3 --dist loadfile --no-loadscope-reorder --durations=15

.PHONY: help setup demo demo-det demo-seg test test-long attack lint bench-cuda figures docs api clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# //p; /^$$/q' Makefile

setup: $(VENV)/.installed

$(VENV)/.installed: requirements.txt requirements-dev.txt requirements-app.txt pyproject.toml setup.py davit_command.py $(wildcard davit/kernels/cpu/cpp/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "Python 3.10 or newer is needed; $$($(PYTHON) --version) was found. Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV) || { \
	  echo "python -m venv failed; on Debian or Ubuntu: apt install python3-venv"; rm -rf $(VENV); exit 2; }
	$(RUN) -m pip install -q --disable-pip-version-check -r requirements.txt -r requirements-dev.txt
	$(RUN) -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: setup
	$(RUN) train.py --output $(dir $(OUTPUT)) --experiment $(notdir $(OUTPUT)) --overwrite
	$(RUN) validate.py data/digits --checkpoint $(OUTPUT)/model_best.pth.tar

# Two processes on two cores, each with half of a batch: so small a model keeps no second thread busy.
demo-det: DETECTOR = mmdet/configs/davit_nano_maskrcnn_digits.py
demo-det: setup
	$(RUN) -m davit.data scenes
	CUDA_VISIBLE_DEVICES= PYTHON=$(abspath $(RUN)) bash mmdet/tools/dist_train.sh $(DETECTOR) 2 --work-dir output/demo-det \
	  --seed 0 --no-validate --cfg-options $(addprefix train_dataloader.,batch_size=4 num_workers=0 persistent_workers=False)
	$(RUN) mmdet/tools/test.py $(DETECTOR) output/demo-det/epoch_3.pth --work-dir output/demo-det/test --show-dir output/demo-det/drawn

demo-seg: SEGMENTOR = mmseg/configs/upernet_davit_nano_digits.py
demo-seg: setup
	$(RUN) -m davit.data scenes
	$(RUN) mmseg/tools/train.py $(SEGMENTOR) --work-dir output/demo-seg --seed 0 --no-validate
	$(RUN) mmseg/tools/test.py $(SEGMENTOR) output/demo-seg/iter_1800.pth --work-dir output/demo-seg/test --show-dir output/demo-seg/drawn

test: setup
	$(PYTEST) -m "not long" --cov --cov-report=term:skip-covered --cov-fail-under=95

test-long: setup
	$(PYTEST)

attack: setup
	OMP_NUM_THREADS=1 $(RUN) -m tests.hostile.attack -n $(N) --seed $(SEED) --results output/hostile.md

lint: setup
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(VENV)/bin/clang-format --dry-run -Werror $(wildcard davit/kernels/cpu/cpp/*)
	$(RUN) -m mypy
	$(VENV)/bin/lint-imports --no-cache --no-logo

bench-cuda: setup
	PYTHON=$(abspath $(RUN)) bash benchmarks/gpu/run.sh

figures: setup
	$(RUN) figures/draw.py

docs: setup
	$(RUN) -m pip install -q --disable-pip-version-check -r requirements-docs.txt
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build -q --strict -f docs/mkdocs.yml
	@echo "to read and search it: $(RUN) -m http.server -b 127.0.0.1 -d output/docs"

api: setup
	$(RUN) $(PDOC) --docformat google -o $(API_DIR) $(API)

clean:
	rm -rf $(VENV) output data .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
