# Each target creates .venv, where there is none, and installs what it needs; everything else is tried in that .venv.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
# The oldest supported transformers and accelerate, laid over what .venv has of everything else.
OLDEST := .venv-oldest
# Python compiles what it imports, and keeps it; pip would compile all of torch, which takes longer than all else.
INSTALL := -m pip install --quiet --disable-pip-version-check --no-compile
PYTEST := -m pytest -n 3 --dist loadfile -q --durations 15
# With those, the tests of parts that use neither library are left out, the long ones that are marked "once", and those
# of the paper's experiments.
NUMERICS := autowu loss_curve rewind \
	autolrs/test_forecast.py autolrs/test_positions.py autolrs/test_proposal.py autolrs/test_restart.py \
	autolrs/test_scheduler.py autolrs/test_search.py autolrs/test_stages.py \
	clars/test_hooks.py clars/test_rates.py \
	runtime/losses/test_history.py runtime/losses/test_value.py \
	runtime/param_groups/test_flat.py runtime/param_groups/test_foreign.py runtime/param_groups/test_masters.py \
	runtime/param_groups/test_stepped.py \
	runtime/test_checks.py runtime/test_compiling.py runtime/test_finite.py runtime/test_loop_watch.py \
	runtime/test_random_state.py \
	runtime/update_meter runtime/test_wrapping.py \
	salsa/test_line_search.py salsa/test_optimizers.py salsa/test_sasa.py salsa/test_scheduler.py \
	salsa/test_settings.py salsa/test_state.py salsa/test_update_tap.py \
	test_batch_norm_benchmark.py test_benchmark_runs.py test_benchmarks.py test_designs.py test_faults.py test_layout.py \
	test_misses.py test_nothing_found.py \
	test_optimizers_benchmark.py test_paper_experiments.py test_real_designs.py test_real_model_texts.py \
	test_real_models.py test_shapes.py test_suggestions_benchmark.py

unexport PYTHONDONTWRITEBYTECODE

.PHONY: example test test-oldest quality benchmark clean

example: $(VENV)/.examples
	$(RUN) examples/vit_image_classification.py

test: $(VENV)/.test
	HF_HUB_OFFLINE=1 $(RUN) $(PYTEST)

test-oldest: $(OLDEST)/.test
	HF_HUB_OFFLINE=1 $(OLDEST)/bin/python $(PYTEST) -m 'not once' $(NUMERICS:%=--ignore tests/%)

quality: $(VENV)/.test
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

benchmark: $(VENV)/.benchmarks
	$(RUN) examples/benchmarks/speed.py
	$(RUN) examples/benchmarks/compare.py --quick
	$(RUN) examples/benchmarks/compare_report.py --quick

clean:
	rm -rf $(VENV) $(OLDEST)

$(VENV)/.test: EXTRAS := test,launchers,dev
$(VENV)/.%: EXTRAS = $*
$(VENV)/.%: setup.cfg .ci/constraints.txt | $(RUN)
	$(RUN) $(INSTALL) -c .ci/constraints.txt -e '.[$(EXTRAS)]'
	touch $@

$(RUN):
	$(PYTHON) -m venv $(VENV)

$(OLDEST)/.test: setup.cfg .ci/constraints-oldest.txt | $(VENV)/.test
	$(PYTHON) -m venv $(OLDEST)
	$(RUN) -c 'import site; print(*site.getsitepackages(), sep="\n")' > $$(echo $(OLDEST)/lib/python3*/site-packages)/newest.pth
	$(OLDEST)/bin/python $(INSTALL) -c .ci/constraints-oldest.txt -e '.[test]'
	touch $@
