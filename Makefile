# Each target creates .venv, where there is none, and installs what it needs; everything else is tried in that .venv.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: example test quality benchmark clean

example: $(VENV)/.examples
	$(RUN) examples/vit_image_classification.py

test: $(VENV)/.test
	HF_HUB_OFFLINE=1 $(RUN) -m pytest -n 2 --dist loadfile -q

quality: $(VENV)/.test $(VENV)/.dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

benchmark: $(VENV)/.examples
	$(RUN) examples/benchmarks/speed.py

clean:
	rm -rf $(VENV)

$(VENV)/.%: setup.cfg .ci/constraints.txt | $(RUN)
	$(RUN) -m pip install --quiet --disable-pip-version-check -c .ci/constraints.txt -e '.[$*]'
	touch $@

$(RUN):
	$(PYTHON) -m venv $(VENV)
