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
# Of the random choices of `make faults`.
SEED ?= 0

# Commands read these from the environment, in quotes: paths may hold spaces.
export PYTHON VENV DETECTRON2 DEMO CONSTRAINTS SEED
export MPLBACKEND = Agg
# On CPUs, let waiting threads sleep soon: spinning for long, as by default, slows training tenfold
# as soon as anything else runs on the same cores.
export GOMP_SPINCOUNT = 10000
# Where it is set, every start of a tool would compile torch and all else anew: 17 s instead of 7 s.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo deploy-demo test faults lint docs clean
help:
	@echo "make setup        create the virtual environment VENV only"
	@echo "make demo         train, score and draw on generated street scenes: about 12 minutes in all"
	@echo "                  on two cores, 3 of them for the set-up"
	@echo "make deploy-demo  export, quantise, prune and time what make demo trained, in 8 to 9 minutes"
	@echo "make test         run the test suite"
	@echo "make faults       kill, interrupt, fill disks and feed damaged files, in 30 to 75 minutes"
	@echo "make lint         check style and types"
	@echo "make docs         build the documentation as a site, into site/"
	@echo "make clean        remove DEMO and VENV"
	@echo "Variables: VENV=$$VENV PYTHON=$$PYTHON DEMO=$$DEMO CONSTRAINTS=$$CONSTRAINTS"
	@echo "           DETECTRON2=<git+URL, folder or wheel>"

setup:
	@.ci/setup

# The pictures are of val part 4 of 4, on which no stage has trained: of the 32 images of each of
# val's three cities, numbers 24 to 27.
demo:
	@echo "make demo: about 12 minutes in all on two cores, 3 of them for the set-up, the first time"
	@.ci/setup
	@.ci/folder mark "$$DEMO"
	@.ci/show "$$VENV/bin/python" datasets/make_synthetic_cityscapes.py "$$DEMO/datasets" \
	  --train 240 --val 96 --test 0 --train-extra 0 --height 128 --width 256 --seed 7
	@.ci/show env DETECTRON2_DATASETS="$$DEMO/datasets" "$$VENV/bin/python" tools/train_stages.py \
	  --config-dir configs/demo --output "$$DEMO" --trials 2 --confirm 0
	@.ci/show env DETECTRON2_DATASETS="$$DEMO/datasets" "$$VENV/bin/python" tools/visualize_predictions.py \
	  --config-file "$$DEMO/stage_3/config.yaml" \
	  --input "$$DEMO"'/datasets/cityscapes/leftImg8bit/val/*/*_00002[4-7]_*.png' \
	  --output "$$DEMO/pictures" --score-thresh 0.5 \
	  MODEL.WEIGHTS "$$DEMO/stage_3/model_final.pth"
	@.ci/show "$$VENV/bin/python" tools/report.py --run "$$DEMO" --output "$$DEMO/report.html"
	@echo
	@echo "Report             $$DEMO/report.html"
	@echo "Pictures           $$DEMO/pictures/"
	@echo "Data               export DETECTRON2_DATASETS='$$DEMO/datasets'"
	@echo "TensorBoard        $$VENV/bin/tensorboard --logdir '$$DEMO'"

deploy-demo: setup
	@.ci/deploy_demo

test: setup
	@.ci/show "$$VENV/bin/python" -m pytest -q -n 2 --dist loadfile

faults: setup
	@.ci/show "$$VENV/bin/python" tests/faults/run.py --seed "$$SEED" --table docs/reliability.md

lint: setup
	@.ci/show "$$VENV/bin/python" -m ruff check .
	@.ci/show "$$VENV/bin/python" -m ruff format --check .
	@.ci/show "$$VENV/bin/python" -m mypy

docs: setup
	@.ci/show env NO_MKDOCS_2_WARNING=1 "$$VENV/bin/python" -m mkdocs build --strict

clean:
	@.ci/folder remove "$$DEMO"
	@.ci/folder remove "$$VENV"
