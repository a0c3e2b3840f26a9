# Needs only python3 (3.11 or newer, with venv) and make; everything else is installed into .venv.
PYTHON ?= python3
# Pinned, so that every machine tests with the same numerics. Override for a CUDA build of your choice.
TORCH ?= torch==2.13.0
BIN := .venv/bin
DEMO := outputs/demo
RUN := $(BIN)/gptoss-ft
# The longest trained answer has 53 tokens.
ANSWERS := file=data/lighthouse.jsonl max_new_tokens=64

.PHONY: help venv demo test test-slow test-browser bench gpu-check lint clean

help:
	@echo "make demo       tune, merge and ask a tiny gpt-oss: the whole job in minutes, on a laptop"
	@echo "make test       all tests but the slow ones"
	@echo "make test-slow  the slow ones"
	@echo "make test-browser  the HTML preview in Chromium (Debian package chromium)"
	@echo "make bench      all benchmarks, hours, into benchmarks/RESULTS.md (ONLY=loss,epoch: these)"
	@echo "make gpu-check  whether your GPU computes what the CPU does"
	@echo "make lint       ruff and mypy"
	@echo "make venv       only create .venv and install"

venv: .venv/installed

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "python3 is too old: 3.11 or newer is needed (make PYTHON=python3.12 …)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

# Two adapters on the same tiny base: `lossless`, merged back into MXFP4, and LoRA on attention and experts,
# merged to bfloat16. The merged models must give the trained answers, the base must give none of them.
# One thread: on matrices this small a second one costs a fifth more CPU time than it saves.
demo: export OMP_NUM_THREADS := 1
demo: venv
	rm -rf $(DEMO)
	$(RUN) tiny out=$(DEMO)/base layers=6 heads=8
	$(RUN) train sft=demo output=$(DEMO) name=lossless model.path=$(DEMO)/base
	$(RUN) merge base=$(DEMO)/base adapter=$(DEMO)/lossless/adapter out=$(DEMO)/lossless-mxfp4 to=mxfp4
	$(RUN) train sft=demo adapter=attention_experts output=$(DEMO) name=experts model.path=$(DEMO)/base \
		trainer.num_train_epochs=16
	$(RUN) merge base=$(DEMO)/base adapter=$(DEMO)/experts/adapter out=$(DEMO)/experts-bf16 to=bf16
	$(RUN) generate model=$(DEMO)/base $(ANSWERS) out=$(DEMO)/base.jsonl max_exact=0
	$(RUN) generate model=$(DEMO)/lossless-mxfp4 $(ANSWERS) out=$(DEMO)/lossless-mxfp4.jsonl min_exact=0.9
	$(RUN) generate model=$(DEMO)/experts-bf16 $(ANSWERS) out=$(DEMO)/experts-bf16.jsonl min_exact=0.9
	@echo "demo: both merged models give the trained answers, the base gives none"

# Two processes of one thread each: the tests' matrices are too small to share.
test: export OMP_NUM_THREADS := 1
test: venv
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not gpu and not network and not runtime and not browser"

test-slow: venv
	$(BIN)/python -m pytest -m slow

test-browser: venv
	$(BIN)/python -m pytest -m browser

bench: venv
	$(BIN)/python benchmarks/results.py $(if $(ONLY),only=$(ONLY))

gpu-check: venv
	$(RUN) gpu-check

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf outputs multirun .pytest_cache .mypy_cache .ruff_cache
