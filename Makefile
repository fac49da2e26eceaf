# Every line runs one visible command; `make help` lists the targets.
PY := .venv/bin/python
PYTHON ?= python3
MODALITY ?= t1
MODEL ?= vae_cr
DEMO := work/demo
SEED ?= 0
WORKERS ?= 1
ARGS ?=
TORCH_INDEX ?=

.DEFAULT_GOAL := help
.PHONY: help demo test lint preprocess train infer evaluate compare synthesise choose benchmark results reproduce clean

.venv/installed: requirements.txt
	@echo "installing the environment into .venv (a few minutes, once)"
	test -x $(PY) || $(PYTHON) -c 'import sys; sys.exit("Norma needs Python 3.11 or newer; run make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(PY) -m pip install --disable-pip-version-check --progress-bar off $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(shell grep '^torch==' requirements.txt)
	$(PY) -m pip install --disable-pip-version-check --progress-bar off -r requirements.txt
	touch $@

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F': .*## ' '{printf "make %-12s %s\n", $$1, $$2}'

demo: .venv/installed ## the main job in minutes: virtual cohort, preprocess, train, infer, evaluate, report (OUT=work/demo)
	$(PY) -m pipelines.demo --out $(or $(OUT),$(DEMO)) --seed $(SEED) $(ARGS)

test: .venv/installed lint ## lint, then all tests
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 tests

lint: .venv/installed ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

preprocess: .venv/installed ## IN= scans, MODALITY=ct|t1|t2|flair|picture or t1+flair, OUT= [TEMPLATE= FORMAT=nifti WORKERS=n EXECUTOR=slurm]; without IN the demo cohort
	$(if $(IN),,$(PY) -m pipelines.cohort --out $(DEMO)/cohort --seed $(SEED))
	$(PY) -m pipelines.preprocess --input $(or $(IN),$(DEMO)/cohort/cohort.tsv) --modality $(MODALITY) --out $(or $(OUT),$(if $(IN),work/$(MODALITY),$(DEMO)/data)) --workers $(WORKERS) $(if $(EXECUTOR),--executor $(EXECUTOR)) --seed $(SEED) $(if $(TEMPLATE),--template $(TEMPLATE)) $(if $(FORMAT),--format $(FORMAT)) $(ARGS)

train: .venv/installed ## MODEL=vae_cr DATA= OUT of preprocess [OUT= PRESET=small ARGS="key=value"]; without DATA the demo cohort, small
	$(if $(DATA),,test -f $(DEMO)/data/scans.tsv || $(MAKE) preprocess IN= OUT= MODALITY=t1 ARGS=)
	$(PY) -m pipelines.train --model $(MODEL) --data $(or $(DATA),$(DEMO)/data) $(if $(or $(OUT),$(if $(DATA),,x)),--out $(or $(OUT),runs/demo/$(MODEL))) $(if $(or $(PRESET),$(if $(DATA),,small)),--preset $(or $(PRESET),small)) $(ARGS)

infer: .venv/installed ## RUN= run folder, IN= scan, folder or table, OUT= [THRESHOLD= WORKERS=n EXECUTOR=slurm]
	$(PY) -m pipelines.infer --run $(RUN) --input $(IN) --out $(OUT) --workers $(WORKERS) $(if $(EXECUTOR),--executor $(EXECUTOR)) $(if $(THRESHOLD),--threshold $(THRESHOLD)) $(ARGS)

evaluate: .venv/installed ## RUN= run folder, DATA= OUT of preprocess [OUT= POINT=share|conformal|quantile=0.95|fixed=0.3|oracle]
	$(PY) -m pipelines.evaluate --run $(RUN) --data $(DATA) $(if $(OUT),--out $(OUT)) $(if $(POINT),--point $(POINT)) $(ARGS)

compare: .venv/installed ## DATA= OUT of preprocess, MODELS="intensity pca vae_cr" [TEST= SEEDS=5 PROTOCOL=kfold BASELINE= OUT= PRESET=]
	$(PY) -m pipelines.compare --data $(DATA) --models "$(MODELS)" $(if $(TEST),--test $(TEST)) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(PROTOCOL),--protocol $(PROTOCOL)) $(if $(BASELINE),--baseline $(BASELINE)) $(if $(OUT),--out $(OUT)) $(if $(PRESET),--preset $(PRESET)) $(ARGS)

synthesise: .venv/installed ## DATA= OUT of preprocess, OUT= folder: synthetic lesions on its healthy test scans, for preprocess
	$(PY) -m pipelines.synthesise --data $(DATA) --out $(OUT) --seed $(SEED) $(ARGS)

choose: .venv/installed ## DATA= OUT of preprocess, RUNS="runs/ct/vae runs/ct/cae": rank by synthetic lesions in validation scans
	$(PY) -m pipelines.choose --data $(DATA) --runs $(RUNS) --seed $(SEED) $(if $(OUT),--out $(OUT)) $(ARGS)

benchmark: .venv/installed ## what each stage costs beside what users would run instead, half an hour: [T1= CT= raw scans OUT= JSON ARGS="--only loading"]
	$(PY) -m benchmarks.performance $(if $(T1),--t1 $(T1)) $(if $(CT),--ct $(CT)) --out $(or $(OUT),work/performance.json) $(ARGS)

results: .venv/installed ## write docs/results.md from the files in docs/results [ARGS="--add runs/ct"]
	$(PY) -m pipelines.results $(ARGS)

reproduce: .venv/installed ## every measured result again: IN= folder of the public sets [ONLY=ct_ich BUDGET=full ARGS=--dry-run]
	$(PY) -m benchmarks.reproduce --data $(IN) $(if $(ONLY),--only $(ONLY)) $(if $(BUDGET),--budget $(BUDGET)) $(ARGS)

clean: ## remove the environment and caches, never work/ or runs/
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache
