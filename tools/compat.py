"""The learner's tests on the megatron-core of the GPU extra, and what we use of vLLM in its GPU releases.

    make test-compat
    python tools/compat.py [pytest arguments]    only these

The CPU lock holds the newest megatron-core for Python 3.11; later ones ask for 3.12 in their metadata, but their Python
sources run here as they are. So the wheel is unpacked (tools/wheels.py) and put in front on the path, before anything
is imported; the tests, the learner and its rank processes then all use it. vLLM's wheels are only read.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from wheels import ROOT, Wheel, read_lock, unpack

from siri_megatron.errors import RunFailed, SiriError

TESTS = ("tests/compat", "tests/scale", *(f"tests/{name}.py" for name in (
    "learner/test_groups", "learner/test_runtime", "learner/test_logprobs", "learner/test_learner",
    "learner/test_invariance", "learner/test_distributed_optimizer", "learner/test_variants",
    "learner/test_policy_terms", "weights/test_export", "checkpoint/test_reshard", "checkpoint/test_store",
    "convert/test_grid", "convert/test_write")))
"""What runs megatron-core. `make test` has run the rest, which does not depend on it."""
CHOSEN = "not soak and not engine"
WORKERS = ("-n", "2")
LIMIT_S = 1800
"""On a busy machine; a quiet one with two cores takes four minutes."""
SAYS = "import sys, megatron.core as core; sys.stdout.write(f'{core.__version__} {core.__file__}')"


def main(arguments: Sequence[str]) -> int:
    locked = read_lock()
    for wheel in locked:
        unpack(wheel)
    wheels = {wheel.name: wheel for wheel in locked}
    environment = os.environ | {"PYTHONPATH": _path(wheels["megatron-core"])}
    _check_version(wheels["megatron-core"], environment)
    command = [sys.executable, "-m", "pytest", "-m", CHOSEN, *(arguments or (*WORKERS, *TESTS))]
    try:
        return subprocess.run(command, cwd=ROOT, env=environment, check=False, timeout=LIMIT_S).returncode
    except subprocess.TimeoutExpired:
        raise RunFailed(f"the tests did not end within {LIMIT_S} s; what ran last stands above",
                        rule="the lane takes minutes", fix="run python tools/compat.py TEST for that one") from None


def _path(wheel: Wheel) -> str:
    return os.pathsep.join([str(wheel.directory()), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def _check_version(wheel: Wheel, environment: dict[str, str]) -> None:
    """The lane must not run on the installed megatron-core by mistake."""
    code = f"from siri_megatron.learner import mcore; {SAYS}"
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True,
                          timeout=600, check=False)
    version, _, file = said.stdout.rpartition("\n")[2].partition(" ")
    if version.partition("+")[0] != wheel.version or not Path(file).is_relative_to(wheel.directory()):
        raise RunFailed(f"megatron-core {version or 'none'} from {file or said.stderr[-400:]} was imported",
                        rule=f"megatron-core {wheel.version} from {wheel.directory()}",
                        fix="remove .compat and run make test-compat again")
    print(f"megatron-core {version} from {Path(file).parent.relative_to(ROOT)}", flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except SiriError as error:
        sys.exit(str(error))
