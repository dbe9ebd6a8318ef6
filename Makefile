# Two commands do everything: `make demo` runs the main job, `make test` passes the tests. Both install what they need.
.DEFAULT_GOAL := help
PY := .venv/bin/python
.PHONY: help setup demo test lint clean

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10
	@echo
	@echo "demo takes TRACE=FILE MINUTES=N SPEED=N SCALE=N BUDGET=GPUS SEED=N OUT=DIR, for example:"
	@echo "  make demo TRACE=azure.csv.gz MINUTES=10 SCALE=0.1"

setup: ## create .venv (with uv) and install everything
	@sh deploy/install.sh

demo: setup ## run the whole system on mock engines and write demo-report/
	@$(PY) -m global_planner demo $(if $(TOPOLOGY),--topology "$(TOPOLOGY)") $(if $(TRACE),--trace "$(TRACE)") \
	  $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SPEED),--speed $(SPEED)) $(if $(SCALE),--scale $(SCALE)) \
	  $(if $(BUDGET),--budget $(BUDGET)) $(if $(SEED),--seed $(SEED)) $(if $(OUT),--out "$(OUT)")

lint: setup ## ruff, mypy --strict, import contracts
	@.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy && .venv/bin/lint-imports

test: setup lint ## lint and all tests
	@sh tests/services/install.sh
	@$(PY) -m pytest -m "not system and not alone" --numprocesses 2 --dist worksteal
	@# Real processes on a shared machine: one that fails is tried once more, and both tries are told.
	@$(PY) -m pytest -m system --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 15 --reruns 1
	@$(PY) -m pytest -m alone --durations 15 --reruns 1

clean: ## remove what the commands above made (not .venv)
	@rm -rf demo-report* replay-report* whatif-report* .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
