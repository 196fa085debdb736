# make demo   the embedded study, start to report, offline        make test   the test suite
# make paper  the manuscript from committed results           make studies  all its studies, from where they stopped
# make pages  the report of every committed study, into runs/pages     make figures  the pictures of README and docs
# make setup  only the environment     make check  style, types, house rules     make bench  every measurement
# make serving   the environment with mlx-lm in it, and a small real model (93 MB): for the README's first answer
# make docs   the documentation, into build/site
# make interop   exports through the tools that the package index has   make compat   all of them: results/bench/compat.json
# make soak   long runs against faults and wear, outside the suite; JSON into build/soak
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

STUDY  ?= results/alpaca-babyllama-full
BESIDE ?= results/gsm8k-stories260k results/alpaca-stories260k results/alpaca-original results/stability \
          results/ceiling-smollm2-reasoning results/ladder-smollm2 results/ladder-babyllama \
          results/ceiling-babyllama-alpaca results/ceiling-babyllama-reasoning \
          results/ceiling-stories260k-alpaca results/ceiling-stories260k-gsm8k \
          results/ceiling-stories260k-reasoning \
          results/bench/recovery-babyllama.json results/bench/recovery-stories260K-hindsight.json \
          results/bench/recovery-stories260K-equal-cost.json
TEXT   ?= paper/text

COMPAT ?= results/bench/compat.json

.PHONY: setup demo serving studies pages figures paper docs test soak check bench interop interop-tools compat clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $(READY)

demo: $(READY)
	$(BIN)/adaptive-lora demo --out runs/demo

serving: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --requirement examples/mlx.txt
	$(BIN)/adaptive-lora fetch smollm2

studies: $(READY)
	$(BIN)/python scripts/studies.py

pages: $(READY)
	$(BIN)/python scripts/pages.py

paper: $(READY)
	$(BIN)/adaptive-lora paper $(STUDY) $(addprefix --with ,$(BESIDE)) --text $(TEXT) --out paper

figures: $(READY)
	$(BIN)/python scripts/figures.py

# Strict: a broken link or a page that no one lists stops it.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict
	@echo build/site/index.html

# One process a core. Torch's threads wait without spinning, as the other process has work for that core. Bytecode is
# kept, as each process that a test starts would else compile the package anew. House rules are `make check`.
test: $(READY)
	env -u PYTHONDONTWRITEBYTECODE OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest --numprocesses auto --dist worksteal \
		--ignore=tests/test_house.py

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_house.py

# A script whose material is not here stops none of the others. Figures are drawn of results that one names: no measurement.
bench: $(READY)
	@failed=; for script in $(filter-out %_figure.py,$(sort $(wildcard bench/*.py))); do \
		echo "$$script"; $(BIN)/python $$script || failed="$$failed $$script"; \
	done; test -z "$$failed" || { echo "failed:$$failed" >&2; exit 1; }

# Scripts print JSON; what pytest collects there is run as well. `make test` runs none of it.
soak: $(READY)
	@mkdir -p build/soak; failed=; for script in $(filter-out %/__init__.py %/conftest.py $(wildcard tests/soak/test_*.py),\
			$(sort $(wildcard tests/soak/*.py))) bench/faults.py; do \
		echo "$$script"; \
		PYTHONPATH=. $(BIN)/python $$script --out build/soak/$$(basename $$script .py).json || failed="$$failed $$script"; \
	done; \
	tests="$(wildcard tests/soak/test_*.py)"; if test -n "$$tests"; then \
		$(BIN)/python -m pytest --override-ini=addopts=-q $$tests || failed="$$failed $$tests"; \
	fi; test -z "$$failed" || { echo "failed:$$failed" >&2; exit 1; }

# The tools are kept outside of the checkout, so that they are installed once: scripts/interop.py says where.
interop-tools: $(READY)
	$(BIN)/python scripts/interop.py

interop: interop-tools
	OMP_NUM_THREADS=1 $(BIN)/python scripts/interop.py -m pytest --numprocesses auto --dist worksteal -rs \
		tests/export/test_through_tools.py tests/export/test_in_tools.py

compat: interop-tools
	$(BIN)/python scripts/interop.py bench/compat.py --out $(COMPAT)

clean:
	rm -rf $(VENV) runs build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
