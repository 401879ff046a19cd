# The commands of the project; each one's comment is its help.
SHELL       := /bin/bash
PYTHON      ?= python3
INVENTORY   ?=
DEPLOY      ?=
LIMIT       ?=
OPTIONS     ?=
HOST        ?=
ONLY        ?=
BIN         := .venv/bin
RUN          = $(BIN)/python -m fleet.run
LAB          = $(BIN)/python -m lab
LAB_PACKAGES = $(shell sed "s/\#.*//" lab/packages.txt lab/standin/packages.txt tests/packages.txt)

help:          ## This list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 18

lab-up: setup-lab  ## Start the lab, deploy the fleet into it, show its agents
	$(LAB) up
	$(RUN) deploy inventories/lab.py
	@echo
	@$(BIN)/python -m fleet.status inventories/lab.py --no-drift

lab-down:      ## Stop the lab and remove its hosts; images and packages stay
	$(LAB) down

test: setup-lab  ## Format, lint, types, unit and rendered tests, and the lab's (started if it is down)
	@$(BIN)/python tests/run.py

check: setup   ## Format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

plan: setup    ## What a deploy would change: INVENTORY=… [DEPLOY=deploys/….py] [LIMIT=host]
	@$(need_inventory)
	@$(RUN) plan $(INVENTORY) $(DEPLOY) $(if $(LIMIT),--limit $(LIMIT))

deploy: setup  ## Deploy: INVENTORY=… [DEPLOY=deploys/….py] [LIMIT=host]; all in order without DEPLOY
	@$(need_inventory)
	@$(RUN) deploy $(INVENTORY) $(DEPLOY) $(if $(LIMIT),--limit $(LIMIT))

restart-poolers: setup  ## Restart the poolers one after the other, without an error: INVENTORY=… [LIMIT=host]
	@$(need_inventory)
	@$(RUN) restart $(INVENTORY) $(if $(LIMIT),--limit $(LIMIT))

status: setup  ## All of the fleet at one look, and what is not well: INVENTORY=… [OPTIONS=--json]
	@$(need_inventory)
	@$(BIN)/python -m fleet.status $(INVENTORY) $(OPTIONS)

agent-rollback: setup  ## A moved agent back to its backup, direct: INVENTORY=… HOST=…
	@$(need_inventory)
	@[ -n "$(HOST)" ] || { echo "HOST is not given"; echo "HINT: make $@ INVENTORY=$(INVENTORY) HOST=agent1"; exit 1; }
	@$(RUN) deploy $(INVENTORY) deploys/agent_rollback.py --limit $(HOST)

verify: setup  ## Look at every host, pooler, agent and certificate of a deployed fleet: INVENTORY=…; reads, and tries logins
	@$(need_inventory)
	@$(BIN)/pytest -q tests/verify --inventory=$(INVENTORY)

bench-deploy: setup-lab .venv/bench/installed  ## Time lab-up (cached), a second run, 100 agents beside ansible-core: [ONLY=lab|hundred]
	@ONLY=$(ONLY) $(BIN)/python -m tests.bench_deploy

.venv/bench/installed: .venv/installed
	@$(PYTHON) -m venv .venv/bench
	@.venv/bench/bin/pip install --quiet --disable-pip-version-check ansible-core==2.19.14
	@touch $@

setup: .venv/installed        ## The Python environment in .venv
setup-lab: .venv/installed    ## The same, and the machine's packages for the lab
	@missing=; for package in $(LAB_PACKAGES); do \
	    dpkg-query -W -f '$${db:Status-Status}' $$package 2>/dev/null | grep -qx installed || missing="$$missing $$package"; \
	done; [ -z "$$missing" ] || { \
	    [ "$$(id -u)" = 0 ] || { echo "the lab needs$$missing"; echo "HINT: sudo make setup-lab"; exit 1; }; \
	    echo "installing$$missing"; apt-get update -qq && \
	    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $$missing >/dev/null; }

.venv/installed: requirements.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	    { echo "$$($(PYTHON) --version) is not supported, 3.11 to 3.13 are"; echo "HINT: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
	    { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq --no-install-recommends python3-venv; } || \
	    { echo "python3 has no venv module"; echo "HINT: apt-get install python3-venv"; exit 1; }
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

need_inventory = [ -n "$(INVENTORY)" ] || { echo "INVENTORY is not given"; echo "HINT: make $@ INVENTORY=inventories/lab.py"; exit 1; }

# The order of the goals on the command line counts: make lab-up test.
.NOTPARALLEL:
.PHONY: help lab-up lab-down test check plan deploy restart-poolers status verify agent-rollback bench-deploy setup setup-lab
