# make quickstart: sets everything up, then the whole path on this machine with no download of data
# make test:       sets everything up, then what CI runs
# make test-slow:  the tests that take minutes each
# make test-gcs:   the whole path, faults and requests on gs://, against a real server of the Cloud
#                  Storage API
# make test-beam:  the same bytes by Beam's processes and by Dask, also after a killed worker; 5 minutes
# make test-slurm: launch/slurm.sh on a real Slurm of two nodes, which Debian's apt-get installs for
#                  root; 10 minutes
# make test-transformers4: what is exported, and every head, with transformers 4.57; 5 minutes
# make test-extras: every extra can be installed with its constraints; downloads some GB
# make docs:       the site, docs/_build/html/index.html; warnings are errors
# make PYTHON=python3.11 …: with another Python than python3; where .venv is of another version than
#                  that, in .venv-VERSION
PYTHON ?= python3
version = $(shell $(1) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
VENV := .venv
ifneq ($(origin PYTHON),file)  # asked for, on the command line or in the environment
ifneq ($(wildcard .venv/bin/python),)
ifneq ($(call version,.venv/bin/python),$(call version,$(PYTHON)))
VENV := .venv-$(call version,$(PYTHON))
endif
endif
endif
# Memory in huge pages, where Linux leaves that to programs: XLA's CPU buffers are taken and given
# back in every step, and page faults would recur (docs/explanation/performance.md).
export GLIBC_TUNABLES := glibc.malloc.hugetlb=1
# Exact versions, so that today's commands give today's result.
INSTALL := $(VENV)/bin/pip install --disable-pip-version-check -c constraints.txt

.PHONY: quickstart test test-slow test-gcs test-beam test-slurm test-transformers4 test-extras docs format clean

quickstart: $(VENV)/.hf
	$(VENV)/bin/python -m bert_jax.quickstart

test: $(VENV)/.test
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/lint-imports
	$(VENV)/bin/mypy
	$(VENV)/bin/python -m pytest -m "not slow" -n 2 --dist loadfile --durations=10

test-slow: $(VENV)/.test
	$(VENV)/bin/python -m pytest -m slow --durations=10

# An environment of its own: Apache Beam wants older versions of some packages.
test-gcs: .venv-gcs/.installed
	.venv-gcs/bin/python -m pytest tests/gcs --durations=10

test-beam: .venv-gcs/.installed
	.venv-gcs/bin/python -m pytest tests/data_prep/test_beam.py -rs --durations=5

.venv-gcs/.installed: setup.py constraints-beam.txt
	test -x .venv-gcs/bin/pip || $(PYTHON) -m venv .venv-gcs
	.venv-gcs/bin/pip install --quiet --disable-pip-version-check -c constraints-beam.txt -e '.[test,beam]' 'dask[distributed]'
	@touch $@

test-slurm: $(VENV)/.test
	command -v slurmctld || (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge) || true
	$(VENV)/bin/python -m pytest tests/slurm -rs --durations=10

# An environment of its own: the extras want transformers 5.
test-transformers4: .venv-transformers4/.installed
	.venv-transformers4/bin/python -m pytest tests/huggingface/test_heads.py --durations=5

.venv-transformers4/.installed: setup.py
	test -x .venv-transformers4/bin/pip || $(PYTHON) -m venv .venv-transformers4
	.venv-transformers4/bin/pip install --quiet --disable-pip-version-check -e . transformers==4.57.6 torch==2.13.0 pytest
	@touch $@

test-extras: $(VENV)/.test
	$(VENV)/bin/python -m pytest tests/launch/test_environments.py --durations=10

docs: $(VENV)/.docs
	$(VENV)/bin/python -m sphinx --fail-on-warning --keep-going --quiet docs docs/_build/html
	@echo "wrote docs/_build/html/index.html"

format: $(VENV)/.test
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

$(VENV)/.%: setup.py constraints.txt
	@test -x $(VENV)/bin/pip || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "$(PYTHON) is older than Python 3.11: make PYTHON=python3.11 $(MAKECMDGOALS)")'
	@test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV)
	@echo "installing bert_jax[$*] into $(VENV) (minutes, the first time)"
	$(INSTALL) -e '.[$*]'
	@touch $@

clean:
	rm -rf .venv .venv-* quickstart
