# Needs only python3 (3.11 or newer, with venv) and make; everything else is installed into .venv.
PYTHON ?= python3
# Pinned, so that every machine tests with the same numerics. Override for a CUDA build of your choice.
TORCH ?= torch==2.13.0
# OpenAI's reference implementation, for tests. Only its torch model is used, which needs nothing but torch and
# safetensors; the package asks for a web server and Python 3.12.
GPT_OSS := gpt-oss==0.0.9
BIN := .venv/bin
DEMO := outputs/demo
RUN := $(BIN)/gptoss-ft
# The longest trained answer has 55 tokens.
ANSWERS := file=data/lighthouse.jsonl max_new_tokens=64
PAIRS := file=data/lighthouse_pairs.jsonl max_new_tokens=72
LLAMA := $(BIN)/python tests/runtimes/answers.py tokenizer=$(DEMO)/base file=data/lighthouse.jsonl

.PHONY: demo-base demo-train-lossless demo-train-experts demo-merge-lossless demo-merge-experts demo-ask-base
.PHONY: demo-ask-lossless demo-ask-experts demo-llama-lossless demo-llama-experts demo-checks
.PHONY: help venv demo demo-dpo test test-slow test-browser runtimes bench gpu-check lint clean

help:
	@echo "make demo       tune, merge and ask a tiny gpt-oss: the whole job in minutes, on a laptop"
	@echo "make demo-dpo   then teach it another style from preference pairs"
	@echo "make test       all tests but the slow ones"
	@echo "make test-slow  the slow ones"
	@echo "make test-browser  the HTML preview in Chromium (Debian package chromium)"
	@echo "make runtimes   exports in their real runtimes (ONNX=0: without ONNX Runtime, VLLM=1: with vLLM, 3.5 GB)"
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
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --ignore-requires-python "$(GPT_OSS)"
	touch $@

# Two adapters on the same tiny base: `lossless`, merged back into MXFP4, and LoRA on attention and experts,
# merged to bfloat16. The merged models must give the trained answers, the base must give none of them.
# So must llama.cpp, from the first merged model as GGUF, and from the base with the second adapter beside it.
# Two jobs of one thread each: on matrices this small a second thread costs a fifth more CPU time than it saves.
# Where make can (4.0 or newer), a command's output comes in one piece once it ends: two at once stay readable.
demo: export OMP_NUM_THREADS := 1
demo: venv
	rm -rf $(DEMO)
	@echo "two jobs at a time; each command shows its output when it ends, the trainings after some minutes"
	$(MAKE) --no-print-directory -j2 $(if $(filter output-sync,$(.FEATURES)),--output-sync=line) demo-checks
	@echo "demo: both merged models give the trained answers, the base gives none; llama.cpp agrees"

# The demo's jobs, each once all it needs is there; for `make demo`, which clears the folder first. The trainings
# come first: they take longest, and what is left of the other jobs fills the core that is free sooner.
demo-checks: demo-ask-lossless demo-ask-experts demo-llama-lossless demo-llama-experts demo-ask-base

demo-base:
	$(RUN) tiny out=$(DEMO)/base layers=6 heads=8

demo-train-lossless: demo-base
	$(RUN) train sft=demo output=$(DEMO) name=lossless model.path=$(DEMO)/base

demo-train-experts: demo-base
	$(RUN) train sft=demo adapter=attention_experts output=$(DEMO) name=experts model.path=$(DEMO)/base \
		trainer.num_train_epochs=16

demo-merge-lossless: demo-train-lossless
	$(RUN) merge base=$(DEMO)/base adapter=$(DEMO)/lossless/adapter out=$(DEMO)/lossless-mxfp4 to=mxfp4

demo-merge-experts: demo-train-experts
	$(RUN) merge base=$(DEMO)/base adapter=$(DEMO)/experts/adapter out=$(DEMO)/experts-bf16 to=bf16

demo-ask-base: demo-base
	$(RUN) generate model=$(DEMO)/base $(ANSWERS) out=$(DEMO)/base.jsonl max_exact=0

demo-ask-lossless: demo-merge-lossless
	$(RUN) generate model=$(DEMO)/lossless-mxfp4 $(ANSWERS) out=$(DEMO)/lossless-mxfp4.jsonl min_exact=0.9

demo-ask-experts: demo-merge-experts
	$(RUN) generate model=$(DEMO)/experts-bf16 $(ANSWERS) out=$(DEMO)/experts-bf16.jsonl min_exact=0.9

demo-llama-lossless: demo-merge-lossless
	$(RUN) export model=$(DEMO)/lossless-mxfp4 out=$(DEMO)/lossless.gguf to=gguf
	$(LLAMA) model=$(DEMO)/lossless.gguf min_exact=0.9

demo-llama-experts: demo-train-experts
	$(RUN) export model=$(DEMO)/base out=$(DEMO)/base.gguf to=gguf
	$(RUN) export model=$(DEMO)/base adapter=$(DEMO)/experts/adapter out=$(DEMO)/experts.gguf to=gguf-lora
	$(LLAMA) model=$(DEMO)/base.gguf adapter=$(DEMO)/experts.gguf min_exact=0.9

# The demo's first adapter goes on to preference pairs, in which its own answers are the rejected ones. Every pair must
# be told apart in the last epoch, and the answers must move to the chosen style; one merge holds both stages.
demo-dpo: export OMP_NUM_THREADS := 1
demo-dpo: venv
	test -d $(DEMO)/lossless/adapter || $(MAKE) demo
	rm -rf $(DEMO)/dpo $(DEMO)/dpo-mxfp4
	$(RUN) generate model=$(DEMO)/base adapter=$(DEMO)/lossless/adapter $(PAIRS) against=rejected min_exact=0.9
	$(RUN) train dpo=demo output=$(DEMO) name=dpo model.path=$(DEMO)/base adapter.init=$(DEMO)/lossless/adapter
	$(BIN)/python -c 'import json, sys; sys.exit(json.load(open("$(DEMO)/dpo/manifest.json"))["reward_accuracy"] < 1)'
	$(RUN) merge base=$(DEMO)/base adapter=$(DEMO)/dpo/adapter out=$(DEMO)/dpo-mxfp4 to=mxfp4
	$(RUN) generate model=$(DEMO)/dpo-mxfp4 $(PAIRS) out=$(DEMO)/dpo-mxfp4.jsonl min_exact=0.9
	$(RUN) verify base=$(DEMO)/base adapter=$(DEMO)/dpo/adapter candidate=$(DEMO)/dpo-mxfp4 \
		prompts=data/lighthouse_pairs.jsonl
	@echo "demo-dpo: the answers moved from the rejected to the chosen style, and the merge keeps it"

# Two processes of one thread each: the tests' matrices are too small to share.
test: export OMP_NUM_THREADS := 1
test: venv
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not gpu and not network and not runtime and not browser"

test-slow: export OMP_NUM_THREADS := 1
test-slow: venv
	$(BIN)/python -m pytest -n 2 -m slow

test-browser: venv
	$(BIN)/python -m pytest -m browser

# Exports of the demo's tuned models, run by the runtimes themselves and compared with transformers; then the files
# themselves against llama.cpp's own converter and Go's template engine.
runtimes: export OMP_NUM_THREADS := 1
runtimes: export PYTHONPATH := tests:tests/helpers:tests/oracles:benchmarks
runtimes: venv
	test -f $(DEMO)/experts-bf16/manifest.json || $(MAKE) demo
	$(BIN)/python -m runtimes.table demo=$(DEMO) $(if $(filter 0,$(ONNX)),onnx=false) $(if $(filter 1,$(VLLM)),vllm=true)
	$(BIN)/python -m pytest -m runtime tests/test_gguf_converter.py tests/test_ollama.py

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
