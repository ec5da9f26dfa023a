# make demo   train three models, pick the best, check its weights out
# make test   lint, types, tests
# make torture  kills, power cuts, refusals, flips, fuzz and races by the ten thousand, for hours; Ctrl-C stops it
# make clean  remove what the two made
#
# Both make .venv first, from any Python >= 3.11, with the versions of constraints.txt.
#   PYTHON=...        the Python to make it from

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check
SECONDS_SINCE = $$(( $$(date +%s) - $$started ))

# The tests start thousands of processes, and each would compile coral anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test torture clean

demo: $(STAMP)
	@echo "== demo: three small models on the standard library's text (10 seconds to a minute on two cores)"
	@$(BIN)/python examples/train_and_pick_best.py

test: $(STAMP)
	@echo "== ruff (a second)"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@echo "== mypy --strict (3 seconds, a minute the first time)"
	@$(BIN)/mypy
	@echo "== pytest, two at a time (8 to 17 minutes)"
	@$(BIN)/python -m pytest -n 2 --dist worksteal

torture: $(STAMP)
	@echo "== torture (hours; Ctrl-C stops, and the next call goes on; TORTURE='--only kills,fuzz --minutes 10')"
	@$(BIN)/python -m tests.torture $(TORTURE)

clean:
	rm -rf $(VENV) coral/format/codecs/_kernel.so .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(STAMP): pyproject.toml constraints.txt hatch_build.py $(wildcard coral/format/codecs/*.[ch])
	@started=$$(date +%s); \
	if [ ! -x $(BIN)/pip ]; then \
		python=; \
		for candidate in $(or $(PYTHON),python3.11 python3.12 python3.13 python3.14 python3 python); do \
			if "$$candidate" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
			then python=$$candidate; break; fi; \
		done; \
		if [ -z "$$python" ]; then \
			echo "coral needs Python 3.11 or newer, with its venv module; tried:" \
				"$(or $(PYTHON),python3.11 to python3.14 and python3)." >&2; \
			echo "Install one (Debian: python3 and python3-venv), or name it: make PYTHON=/path/to/python3" >&2; \
			exit 1; \
		fi; \
		echo "== $(VENV): made from $$("$$python" --version)"; \
		"$$python" -m venv $(VENV) || exit 1; \
	fi; \
	echo "== $(VENV): installing (1 to 5 minutes, mostly PyTorch; not again until the versions change)"; \
	PIP_BUILD_CONSTRAINT=constraints.txt $(PIP) install -qq -c constraints.txt -e '.[dev]' || exit 1; \
	touch $@; \
	echo "== $(VENV): ready after $(SECONDS_SINCE) s"
