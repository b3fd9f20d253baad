# make demo   the whole chain on the sample data set: teachers, baseline and student side by side
# make test   all tests but the slow ones, which make test-slow runs (a study, kills, a whole team of servers and workers)
# make check  format, lint, types, import contracts
# Each does all the set-up it needs: a virtual environment with the locked packages, the project, the data.

SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
export DVC_NO_ANALYTICS := 1
export DO_NOT_TRACK := 1

.PHONY: demo test test-slow check format setup data help lock

help:
	@sed -n 's/^# //p' Makefile | head -4

setup: $(READY)

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info < (3, 13), "Python 3.11 or 3.12 is needed; name one with make PYTHON=python3.11"'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	# Compiled now: where Python may not write its own cache (PYTHONDONTWRITEBYTECODE), each stage would spend ten seconds on it.
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --requirement requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@

# DVC's own scratch would be shared by all users of the machine, and is read by pickle.
data: export DVC_SITE_CACHE_DIR ?= $(CURDIR)/.understudy/dvc
data: $(READY)
	@mkdir -p .understudy && mkdir -p -m 700 $(DVC_SITE_CACHE_DIR)
	@$(BIN)/dvc checkout --quiet data.dvc 2>/dev/null || $(BIN)/dvc pull --quiet --remote sample data.dvc

demo: data
	$(BIN)/understudy run
	@$(BIN)/understudy compare
	@echo
	@echo "Look at   reports/index.html        the comparison with pictures"
	@echo "          reports/data/index.html   the data"
	@echo "Try       $(BIN)/understudy predict data/raw/videos/P13_1.mp4 --start 2.2 --stop 4.5"
	@echo "          $(BIN)/understudy import YOUR_FOLDER   (README: your own data)"
	@echo "          $(BIN)/mlflow ui --backend-store-uri sqlite:///.understudy/mlflow.db"

test: $(READY)
	$(BIN)/python -m pytest -m "not slow"

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow --numprocesses=0

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy flows tasks models
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: $(READY)
	$(BIN)/uv pip compile --quiet --no-header --universal --python-version 3.11 --extra dev --upgrade pyproject.toml -o requirements.lock
