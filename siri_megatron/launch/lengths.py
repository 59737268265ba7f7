"""Where `siri plan` takes response lengths from: a name, a file, a run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from siri_megatron.config import RunConfig
from siri_megatron.errors import DataError
from siri_megatron.estimate.lengths import NAMES, Lengths, named, of_samples
from siri_megatron.paths import RunDir

PROMPT_SHARE = 4
"""Prompts are taken to be this part of data.max_prompt_tokens where nothing is known."""


def default_lengths(config: RunConfig) -> Lengths:
    found = named("default", config.budget.l_max, prompt=_prompt(config))
    assert found
    return found


def read_lengths(text: str, config: RunConfig) -> Lengths:
    """`--lengths`: a name, a JSON file (a list, or a mapping with `quantiles` and perhaps `prompt_tokens`), or a run.

    Raises:
        DataError: it is none of these.
    """
    path = Path(text)
    if RunDir(path).ledger.is_dir():
        return _of_run(RunDir(path), config)
    if path.is_file():
        return _of_file(path, config)
    if found := named(text, config.budget.l_max, prompt=_prompt(config)):
        return found
    raise DataError(f"--lengths {text} is no file, no run and no name",
                    rule=f"lengths are a JSON file, a run directory, or one of {NAMES}",
                    fix="for example --lengths lognormal:4000")


def _of_file(path: Path, config: RunConfig) -> Lengths:
    try:
        value = json.loads(path.read_text())
        values, further = (value["quantiles"], value) if isinstance(value, dict) else (value, {})
        return of_samples([float(number) for number in values], origin=str(path),
                          prompt=float(further.get("prompt_tokens", _prompt(config))))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} holds no lengths: {error}", rule="a JSON list of numbers, or {\"quantiles\": [...]}",
                        fix="write the response lengths as a JSON list") from None


def _of_run(paths: RunDir, config: RunConfig) -> Lengths:
    from siri_megatron.estimate.calibration import measured_lengths
    from siri_megatron.launch.measured_run import measured_steps  # pyarrow: half a second

    return measured_lengths(measured_steps(paths), config.budget.l_max, origin=f"responses of {paths.root}")


def _prompt(config: RunConfig) -> float:
    return max(1.0, np.ceil(config.data.max_prompt_tokens / PROMPT_SHARE))
