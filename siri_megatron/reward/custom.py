"""Rewards by a function of the user's, named by import path, in the same killable workers as math-verify.

    def score(prompt: str, reference: str, response: str) -> float | bool | None

`prompt` is the text of the data row (before the template), `reference` its answer, `response` the decoded response up
to the budget in question, without special tokens. The result is a reward in [0, 1] (True is 1, False 0); None means no
verdict. Whatever it raises, and a time-out, is no verdict either. The whole clipped text decides, so the function is
called once for every budget at which the text differs: keep it cheap, or rollout.budget_grid short.

`python -m siri_megatron.reward.custom SPEC` imports a function and checks its signature; preflight runs it, so that the
user's imports happen in a process of their own.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import json
import math
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from siri_megatron.errors import ConfigError
from siri_megatron.reward.workers import FailureLog, Limits, NoVerdict, Workers

if TYPE_CHECKING:
    from siri_megatron.data.codec import TextCodec
    from siri_megatron.data.prompts import Prompt

FORM = "reward.custom is `package.module:function` or `path/to/file.py:function`"
SIGNATURE = "a custom reward is called as f(prompt, reference, response), three strings"
IMPORT_TIMEOUT_S = 120.0


class CustomVerifier:
    """Rewards by the function that `spec` names."""

    def __init__(self, codec: TextCodec, spec: str, limits: Limits) -> None:
        self._codec, self._spec = codec, spec
        self._workers = Workers(limits, functools.partial(load, spec))
        self.failures = FailureLog()

    def answer_text(self, response_ids: Sequence[int]) -> str:
        return self._codec.decode(response_ids)

    async def judge(self, prompt: Prompt, answer_text: str) -> float:
        """The function's reward; NaN if it has none, raised, or was killed."""
        try:
            return float(await self._workers.run(call, self._spec, prompt.text, prompt.answer, answer_text))
        except NoVerdict as failure:
            self.failures.note(failure, answer_text)
            return math.nan

    async def close(self) -> None:
        await self._workers.close()


def call(spec: str, prompt: str, reference: str, response: str) -> float:
    """Runs in a worker."""
    return checked(load(spec)(prompt, reference, response))


def checked(result: object) -> float:
    """A function's result as a reward.

    Raises:
        ValueError: it is none of: a number in [0, 1], a bool, None (which gives NaN).
    """
    if result is None:
        return math.nan
    try:
        reward = math.nan if isinstance(result, str | bytes) else float(result)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        reward = math.nan
    if not 0 <= reward <= 1:
        raise ValueError(f"a custom reward returned {result!r}; it returns a number in [0, 1], a bool or None")
    return reward


@functools.cache
def load(spec: str) -> Callable[[str, str, str], Any]:
    """Import the function.

    Raises:
        ConfigError: no such module or function, its module cannot be imported, or it does not take three strings.
    """
    place, _, name = spec.rpartition(":")
    if not place or not name.isidentifier():
        raise ConfigError(f"reward.custom={spec}", rule=FORM, fix="for example reward.custom=rewards.py:score")
    module = _import(spec, place)
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if inspect.isfunction(value) and not key.startswith("_")]
        raise ConfigError(f"reward.custom={spec}: {place} has no function {name}", rule=FORM,
                          fix=f"its functions are: {', '.join(known) or 'none'}")
    _check_signature(spec, function)
    return function


def _import(spec: str, place: str) -> Any:
    if not place.endswith(".py"):
        return _guarded(spec, lambda: importlib.import_module(place))
    path = Path(place).resolve()
    if not path.is_file():
        raise ConfigError(f"reward.custom={spec}: {path} is no file", rule=FORM, fix="give the path of a Python file")
    sys.path.insert(0, str(path.parent))  # as `python file.py` has it: the file may import its neighbours
    return _guarded(spec, lambda: _import_file(path))


def _import_file(path: Path) -> Any:
    found = importlib.util.spec_from_file_location(f"custom_reward_{path.stem}", path)
    assert found is not None
    assert found.loader is not None
    module = sys.modules[found.name] = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def _guarded(spec: str, importing: Callable[[], Any]) -> Any:
    try:
        return importing()
    except BaseException as error:  # noqa: BLE001  the user's module may raise anything, SystemExit included
        where = error if isinstance(error, SyntaxError) else traceback.extract_tb(error.__traceback__)[-1]
        raise ConfigError(f"reward.custom={spec} cannot be imported: {type(error).__name__}: {error} "
                          f"({where.filename}:{where.lineno})",
                          rule="a custom reward's module is a file, or stands on PYTHONPATH, and imports without error",
                          fix="mend the import, or set PYTHONPATH") from None


def _check_signature(spec: str, function: Callable[..., Any]) -> None:
    if inspect.iscoroutinefunction(function):
        raise ConfigError(f"reward.custom={spec} is an async function", rule=SIGNATURE, fix="make it a plain function")
    try:
        inspect.signature(function).bind("prompt", "reference", "response")
    except TypeError as error:
        raise ConfigError(f"reward.custom={spec} has the signature {inspect.signature(function)}: {error}",
                          rule=SIGNATURE, fix="def score(prompt, reference, response)") from None
    except ValueError:  # a builtin without signature: the first call will say
        return


def check(spec: str) -> None:
    """Import the function in a process of its own.

    Raises:
        ConfigError: as `load`; or the import did not end, or ended the process.
    """
    command = [sys.executable, "-m", "siri_megatron.reward.custom", spec]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=IMPORT_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise ConfigError(f"reward.custom={spec}: its import did not end within {IMPORT_TIMEOUT_S:g} s",
                          rule="a custom reward is imported by every worker",
                          fix="load large things at the first call") from None
    told = (done.stdout.splitlines() or [""])[-1]
    if not told.startswith("{"):
        raise ConfigError(f"reward.custom={spec}: its import ended the process (status {done.returncode}): "
                          f"{done.stderr.strip()[-500:]}", rule="a custom reward imports without error", fix="mend it")
    if problem := json.loads(told):
        raise ConfigError(problem["what"], rule=problem["rule"], fix=problem["fix"])


def main(spec: str) -> None:
    problem: dict[str, str] = {}
    try:
        load(spec)
    except ConfigError as error:
        problem = {"what": error.what, "rule": error.rule, "fix": error.fix}
    print(f"\n{json.dumps(problem)}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
