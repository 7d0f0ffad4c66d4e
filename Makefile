# `make demo` and `make test` set up .venv on the first call and reuse it afterwards.
PYTHON ?= python3
VENV ?= .venv
# Where Detectron2 comes from: git+URL, a folder or a wheel. Example for a machine behind a firewall:
# make demo DETECTRON2=/mnt/packages/detectron2
DETECTRON2 ?= git+https://github.com/facebookresearch/detectron2.git@02b5c4e295e990042a714712c21dc79b731e8833
# Folder of the demo's data, training run and pictures.
DEMO ?= output/demo

# File with the versions to install; `CONSTRAINTS=` takes the newest that setup.py allows.
CONSTRAINTS ?= constraints.txt

BIN = $(VENV)/bin
READY = $(VENV)/.ready
PINS = $(CONSTRAINTS:%=-c %)
export PYTHON
export MPLBACKEND = Agg
# On CPUs, let waiting threads sleep soon: spinning for long, as by default, slows training tenfold
# as soon as anything else runs on the same cores.
export GOMP_SPINCOUNT = 10000
# Where it is set, every start of a tool would compile torch and all else anew: 17 s instead of 7 s.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo test lint clean
help:
	@echo "make setup   create $(VENV) only"
	@echo "make demo    train, score and draw on generated street scenes, on CPU or GPU"
	@echo "make test    run the test suite"
	@echo "make lint    check style and types"
	@echo "make clean   remove $(DEMO) and $(VENV)"
	@echo "Variables: VENV=$(VENV) PYTHON=$(PYTHON) DEMO=$(DEMO) CONSTRAINTS=$(CONSTRAINTS)"
	@echo "           DETECTRON2=<git+URL, folder or wheel>"

# What cannot work is refused before gigabytes are installed.
$(READY): setup.py $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' 2>/dev/null || \
	  { echo "error: $(PYTHON) is not Python 3.10 to 3.12; name one: make PYTHON=python3.11 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "error: $(PYTHON) has no venv module; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@.ci/detectron2 check '$(DETECTRON2)' $(VENV)
	@echo "Setting up $(VENV): about 6 GB, a few minutes, once"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --no-compile $(PINS) 'setuptools<81' numpy torch torchvision $(CONSTRAINTS:%=-r %)
	.ci/detectron2 build '$(DETECTRON2)' $(VENV)
	DETECTRON2="file://$$(realpath $(VENV)/wheels/detectron2-*.whl)" \
	  $(BIN)/pip install -q --no-compile --no-build-isolation $(PINS) -e '.[dev]'
	@touch $@

setup: $(READY)

# The pictures are of val parts 3 and 4, on which no stage has trained: of the 16 images of each of
# val's three cities, numbers 8 to 15.
demo: $(READY)
	$(BIN)/python datasets/make_synthetic_cityscapes.py $(DEMO)/datasets \
	  --train 240 --val 48 --test 0 --train-extra 0 --height 128 --width 256 --seed 7
	DETECTRON2_DATASETS=$(DEMO)/datasets $(BIN)/python tools/train_stages.py \
	  --config-dir configs/demo --output $(DEMO) --trials 2 --confirm 0
	DETECTRON2_DATASETS=$(DEMO)/datasets $(BIN)/python tools/visualize_predictions.py \
	  --config-file $(DEMO)/stage_3/config.yaml \
	  --input '$(DEMO)/datasets/cityscapes/leftImg8bit/val/*/*_00000[89]_*.png' \
	    '$(DEMO)/datasets/cityscapes/leftImg8bit/val/*/*_00001[0-5]_*.png' \
	  --output $(DEMO)/pictures --score-thresh 0.7 \
	  MODEL.WEIGHTS $(DEMO)/stage_3/model_final.pth
	@echo
	@echo "Pictures           $(DEMO)/pictures/"
	@echo "TensorBoard        $(BIN)/tensorboard --logdir $(DEMO)"

test: $(READY)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(DEMO) $(VENV)
