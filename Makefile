# make train   the whole loop for real on this machine's CPU     make test   the test suite
# make setup   only the environment (.venv)                      make lint   ruff and mypy
# make setup-launch   the environment of nemo-run, without torch (.venv-launch, 150 MB)
# make bench   benchmarks; each prints its ratio                 make soak   the long tests (not in CI)
# make study   the study of docs/study/ (hours; goes on where it was ended)     make study-quick   its four arms in 20 minutes
# make test-compat   the tests on the megatron-core and vLLM of the GPU extra (fetches 30 MB of Python sources)
PYTHON ?= python3.11
CONFIG ?= configs/tiny.yaml
VLLM   ?= --require-hashes -r requirements/cpu-vllm.lock
PIP    := .venv/bin/python -m pip --disable-pip-version-check install -q --no-deps --no-compile --retries 1
READY  := .venv/.ready
LAUNCH := .venv-launch/.ready

.PHONY: train test test-compat setup setup-launch lint bench soak study study-quick clean
setup: $(READY)

$(READY): $(wildcard requirements/cpu*.lock) pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; \
	  sys.exit(f"{sys.executable} is Python {v[0]}.{v[1]}, the CPU lock is for 3.11: make PYTHON=/path/to/python3.11") if v != (3, 11) else 0'
	@[ "$$(uname -sm)" = "Linux x86_64" ] || { echo "this is $$(uname -sm), the CPU lock is for Linux x86_64" >&2; exit 2; }
	@echo "setup: making .venv from requirements/*.lock (about 3 GB, 2-3 minutes)"
	@$(PYTHON) -m venv .venv
	@$(PIP) --extra-index-url https://download.pytorch.org/whl/cpu -r requirements/cpu-torch.lock
	@$(PIP) $(VLLM)
	@$(PIP) -r requirements/cpu.lock
	@$(PIP) --no-build-isolation -e .
	@# pip compiles one file after another; a few packages ship files for other Pythons, hence `|| true`
	@.venv/bin/python -m compileall -q -j 0 .venv/lib >/dev/null 2>&1 || true
	@touch $@

setup-launch: $(LAUNCH)

# Login nodes have nothing to run but this: no torch, no vLLM. Pins of its own: what nemo-run needs, cpu.lock excludes.
$(LAUNCH): requirements/launch.lock pyproject.toml
	@$(PYTHON) -m venv .venv-launch
	@.venv-launch/bin/python -m pip --disable-pip-version-check install -q --no-deps --retries 1 -r $<
	@.venv-launch/bin/python -m pip --disable-pip-version-check install -q --no-deps --no-build-isolation -e .
	@touch $@

train: $(READY)
	@.venv/bin/siri train $(CONFIG) --fresh

# Three workers on two cores, for a third of what tests do is waiting. Whole files at a time (tests/dealt_together.py): what
# tests share is made once.
test: $(READY) $(LAUNCH)
	@.venv/bin/python -m pytest -n 3 -m "not soak and not compat"

test-compat: $(READY)
	@.venv/bin/python tools/compat.py

lint: $(READY)
	@.venv/bin/ruff check siri_megatron tests tools
	@.venv/bin/mypy

bench: $(READY)
	@.venv/bin/python tools/bench/stages.py
	@.venv/bin/python tools/bench/learner.py
	@.venv/bin/python tools/bench/planner.py
	@.venv/bin/python tools/bench/memory.py
	@.venv/bin/python tools/bench/plan.py
	@.venv/bin/python tools/bench/verifier.py
	@.venv/bin/python tools/bench/push.py
	@.venv/bin/python tools/bench/lag.py
	@.venv/bin/python tools/bench/fleet.py
	@.venv/bin/python tools/bench/trl.py

soak: $(READY) $(LAUNCH)
	@.venv/bin/python -m pytest -m soak -s

study: $(READY)
	@.venv/bin/siri study configs/study/tiny.yaml configs/study/exploratory.yaml configs/study/chain.yaml --out docs/study

study-quick: $(READY)
	@.venv/bin/siri study configs/study/quick.yaml

clean:
	rm -rf .venv .venv-launch .compat .trl
