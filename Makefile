# Every line runs one visible command. `make help` lists the targets.
# User guide and README explain every variable.
PY := .venv/bin/python
PYTHON ?= python3
MODALITY ?= t1
MODEL ?= vae_cr
SEED ?= 0
WORKERS ?= 1
ARGS ?=
TORCH_INDEX ?=
PYTEST = OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder
PIP = $(PY) -m pip install --disable-pip-version-check --progress-bar off

# $(call opt,--name,value): the option if there is a value, in quotes if the value has a space.
opt = $(if $(2),$(1) $(if $(word 2,$(2)),"$(2)",$(2)))

# The modality that the user gave; no ready-made run is guessed.
given_modality = $(if $(filter file,$(origin MODALITY)),,$(MODALITY))

# Some shells export HOST, the name of this machine: that opens no server to a network.
given_host = $(if $(filter environment,$(origin HOST)),,$(HOST))

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-fast lint preprocess train infer evaluate compare synthesise choose calibrate check stress card pack fetch table benchmark results reproduce serve export adapt learn clean

.venv/installed: requirements.txt
	@echo "installing the environment into .venv (a few minutes, once)"
	test -x $(PY) || $(PYTHON) -c 'import sys; sys.version_info < (3, 11) and \
		sys.exit("Norma needs Python 3.11 or newer; run make PYTHON=python3.12")'
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(PIP) $(call opt,--index-url,$(TORCH_INDEX)) $(shell grep '^torch==' requirements.txt)
	$(PIP) -r requirements.txt
	touch $@

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F': .*## ' '{printf "make %-12s %s\n", $$1, $$2}'

demo: .venv/installed ## all steps on a virtual cohort, in minutes [OUT=work/demo SEED=]
	$(PY) -m pipelines.demo $(call opt,--out,$(or $(OUT),work/demo)) --seed $(SEED) $(ARGS)

test: .venv/installed ## lint beside all tests
	$(MAKE) -j2 lint test-all

test-fast: .venv/installed ## tests without those marked slow: no scan prepared, no run trained, no browser
	$(PYTEST) -m "not slow" tests

test-all: .venv/installed
	$(PYTEST) tests

lint: .venv/installed ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

preprocess: .venv/installed ## IN= MODALITY=ct|t1|t2|flair|picture|fundus|chest_ct|t1+flair OUT= [TEMPLATE= FORMAT= WORKERS= EXECUTOR=]
	$(PY) -m pipelines.preprocess $(call opt,--input,$(IN)) --modality $(MODALITY) $(call opt,--out,$(OUT)) \
		--workers $(WORKERS) $(call opt,--executor,$(EXECUTOR)) --seed $(SEED) $(call opt,--template,$(TEMPLATE)) \
		$(call opt,--format,$(FORMAT)) $(ARGS)

train: .venv/installed ## MODEL=vae_cr DATA=<OUT of preprocess> [OUT= PRESET=small ARGS="key=value"]
	$(PY) -m pipelines.train --model $(MODEL) $(call opt,--data,$(DATA)) $(call opt,--out,$(OUT)) \
		$(call opt,--preset,$(PRESET)) $(ARGS)

infer: .venv/installed ## IN=<scan, folder or table> OUT= RUN=<run folder>|MODALITY=t1 [POINT=finding=0.05 DICOM=1 KEEP_NIFTI=1 OVERWRITE=1 WORKERS= EXECUTOR=]
	$(PY) -m pipelines.infer $(call opt,--run,$(RUN)) $(call opt,--modality,$(if $(RUN),,$(given_modality))) $(call opt,--input,$(IN)) \
		$(call opt,--out,$(OUT)) --workers $(WORKERS) $(call opt,--executor,$(EXECUTOR)) $(call opt,--point,$(POINT)) \
		$(if $(DICOM),--dicom) $(if $(KEEP_NIFTI),--keep-nifti) $(if $(OVERWRITE),--overwrite) $(ARGS)

calibrate: .venv/installed ## RUN=t1 IN=<5 or more healthy scans> OUT=: thresholds for your own scanner, as a child run
	$(PY) -m pipelines.adapt --how calibration $(call opt,--run,$(RUN)) $(call opt,--input,$(IN)) $(call opt,--out,$(OUT)) $(ARGS)

adapt: .venv/installed ## RUN= IN=<healthy scans> OUT= HOW=calibration|harmonise|adabn|finetune|fada [SOURCE=<DATA of the run>]
	$(PY) -m pipelines.adapt $(call opt,--run,$(RUN)) $(call opt,--input,$(IN)) $(call opt,--out,$(OUT)) \
		$(call opt,--how,$(HOW)) $(call opt,--source,$(SOURCE)) $(ARGS)

learn: .venv/installed ## RUN= IN=<export of the review app> DATA=<OUT of preprocess> OUT=: what readers rejected is damped [UNDO=<entry>]
	$(PY) -m pipelines.learn $(call opt,--run,$(RUN)) $(call opt,--input,$(IN)) $(call opt,--data,$(DATA)) \
		$(call opt,--out,$(OUT)) $(call opt,--undo,$(UNDO)) $(ARGS)

check: .venv/installed ## IN= RUN=: how like the run's training scans some scans are; nothing is scored
	$(PY) -m pipelines.check $(call opt,--run,$(RUN)) $(call opt,--input,$(IN)) $(ARGS)

stress: .venv/installed ## RUN="<runs>" DATA=: healthy test scans under noise, blur, motion, ...: what is marked in vain [OUT=]
	$(PY) -m pipelines.stress --run $(RUN) $(call opt,--data,$(DATA)) $(call opt,--out,$(OUT)) $(ARGS)

card: .venv/installed ## RUN= [RESULTS=docs/results/<name>]: the model card of a run, from what was measured
	$(PY) -m pipelines.card $(call opt,--run,$(RUN)) $(call opt,--results,$(RESULTS)) $(ARGS)

pack: .venv/installed ## RUN= DATA=<OUT of preprocess> OUT=: a small copy of a run, measured against it
	$(PY) -m pipelines.pack $(call opt,--run,$(RUN)) $(call opt,--data,$(DATA)) $(call opt,--out,$(OUT)) $(ARGS)

fetch: .venv/installed ## DATASET=<name> OUT= ARGS=--accept-licence: a public data set; or READY=<name> [ADDRESS= DIGEST=]: a ready-made run
	$(PY) -m pipelines.fetch $(call opt,--dataset,$(DATASET)) $(call opt,--out,$(OUT)) \
		$(call opt,--ready,$(READY)) $(call opt,--address,$(ADDRESS)) $(call opt,--digest,$(DIGEST)) $(ARGS)

table: .venv/installed ## DATASET=brats2021 IN=<its folder> OUT=<name>.tsv [MODALITY=t1+flair]: its scans as the table that preprocess reads
	$(PY) -m pipelines.table $(call opt,--dataset,$(DATASET)) $(call opt,--input,$(IN)) $(call opt,--out,$(OUT)) \
		$(call opt,--modality,$(given_modality)) $(ARGS)

export: .venv/installed ## RUN=t1 OUT=<folder or .zip>: a run as a MONAI bundle, for use without Norma [DATA=<OUT of preprocess> ARGS=--zip]
	$(PY) -m pipelines.export_bundle $(call opt,--run,$(RUN)) $(call opt,--out,$(OUT)) $(call opt,--data,$(DATA)) $(ARGS)

evaluate: .venv/installed ## RUN= DATA=<OUT of preprocess> [OUT= POINT=finding=0.05|quantile=0.99|share|conformal|fixed=0.3|oracle]
	$(PY) -m pipelines.evaluate $(call opt,--run,$(RUN)) $(call opt,--data,$(DATA)) $(call opt,--out,$(OUT)) \
		$(call opt,--point,$(POINT)) $(ARGS)

compare: .venv/installed ## DATA= MODELS="intensity pca vae_cr" [TEST= SEEDS=5 PROTOCOL=kfold CHOOSE=1 BASELINE= OUT= PRESET=]
	$(PY) -m pipelines.compare $(call opt,--data,$(DATA)) --models "$(MODELS)" $(call opt,--test,$(TEST)) \
		$(call opt,--seeds,$(SEEDS)) $(if $(CHOOSE),--choose) $(call opt,--protocol,$(PROTOCOL)) $(call opt,--baseline,$(BASELINE)) \
		$(call opt,--out,$(OUT)) $(call opt,--preset,$(PRESET)) $(ARGS)

synthesise: .venv/installed ## DATA= OUT=<folder>: plant synthetic lesions in the healthy test scans
	$(PY) -m pipelines.synthesise $(call opt,--data,$(DATA)) $(call opt,--out,$(OUT)) --seed $(SEED) $(ARGS)

choose: .venv/installed ## DATA= RUNS="runs/ct/vae runs/ct/cae": rank runs without labels [OUT=]
	$(PY) -m pipelines.choose $(call opt,--data,$(DATA)) --runs $(RUNS) --seed $(SEED) $(call opt,--out,$(OUT)) $(ARGS)

benchmark: .venv/installed ## what each stage costs, half an hour [T1= CT= OUT= ARGS="--only loading"]
	$(PY) -m benchmarks.performance $(call opt,--t1,$(T1)) $(call opt,--ct,$(CT)) \
		$(call opt,--out,$(or $(OUT),work/performance.json)) $(ARGS)

serve: .venv/installed ## the review app [SOLO=1 DATA=work/app DATABASE= HOST= PORT= INBOX= RUNS= WORKERS= ARGS="--behind-proxy"]
	$(PY) -m app.main $(call opt,--data,$(DATA)) $(call opt,--database,$(DATABASE)) $(call opt,--host,$(given_host)) \
		$(call opt,--port,$(PORT)) $(if $(SOLO),--solo) $(call opt,--inbox,$(INBOX)) $(call opt,--runs,$(RUNS)) \
		--workers $(WORKERS) $(ARGS)

results: .venv/installed ## write docs/results.md from the files in docs/results [ARGS="--add runs/ct"]
	$(PY) -m pipelines.results $(ARGS)

reproduce: .venv/installed ## every measured result again: IN=<the public sets> [ONLY= BUDGET=full ARGS=--dry-run]
	$(PY) -m benchmarks.reproduce $(call opt,--data,$(IN)) $(call opt,--only,$(ONLY)) \
		$(call opt,--budget,$(BUDGET)) $(ARGS)

clean: ## remove the environment and caches, never work/ or runs/
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache
