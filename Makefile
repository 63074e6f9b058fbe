# Each target installs what it needs into .venv; stamp files make the next run quick.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
PACKAGES := llma_rag integrations/langchain/langchain_llma integrations/llama_index/llama_index
PROJECTS := pyproject.toml integrations/langchain/pyproject.toml integrations/llama_index/pyproject.toml
WORKERS ?= 2
TRACES ?= ../shared/traces/dev/llma_rag.jsonl
TOKENIZER ?= ../shared/tokenizers/llama2

.PHONY: demo test lint bench bench-cpu bench-gpu docs

demo: $(VENV)/.demo
	$(BIN)/llma-rag demo

test: $(VENV)/.tools
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(PACKAGES)
	$(BIN)/lint-imports

bench: $(VENV)/.demo
	$(BIN)/python docs/measure.py --traces $(TRACES) --tokenizer $(TOKENIZER)

# On a machine that does nothing else: 30 minutes, and 9 on an H200.
ENGINE := $(BIN)/python docs/measure_engine.py --traces $(TRACES) --tokenizer $(TOKENIZER)

bench-cpu: $(VENV)/.demo
	$(ENGINE) --device cpu --shapes 0.5b --dtypes bfloat16 float32 float32-full --minutes 28
	$(BIN)/python docs/tables.py

bench-gpu: $(VENV)/.demo
	$(ENGINE) --device cuda --shapes llama-3.1-8b llama-3.2-1b --dtypes bfloat16 --minutes 6 \
		--arms hf-greedy hf-prompt-lookup plain llma
	$(BIN)/python docs/tables.py

docs: $(VENV)/.demo
	$(BIN)/python docs/tables.py

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; set PYTHON=path." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	touch $@

# torch comes first and pinned: the other packages then take the build that is there.
$(VENV)/.demo: $(VENV)/.created $(PROJECTS) constraints.txt
	$(INSTALL) pip torch
	$(INSTALL) --editable integrations/langchain --editable integrations/llama_index --editable ".[demo]"
	touch $@

$(VENV)/.tools: $(VENV)/.demo
	$(INSTALL) --group lint --group test
	touch $@
