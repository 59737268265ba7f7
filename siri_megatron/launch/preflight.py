"""Everything that is refused before anything starts: model, context, layout, run directory, space (`space`), packages.

Each check names both values, the rule and the fix. Takes milliseconds; imports neither torch nor vllm, and reads only
the headers of the weight files.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from siri_megatron.config import FREE, IDENTITY, RunConfig, flat, identity_hash, load
from siri_megatron.errors import ConfigError
from siri_megatron.files import existing
from siri_megatron.launch.given import check_given
from siri_megatron.launch.gpus import check_gpus, visible_gpus
from siri_megatron.launch.model_files import ModelFiles, inspect_model
from siri_megatron.launch.progress import holds_run
from siri_megatron.launch.space import SPARE_BYTES, check_disk, check_shm, disk_left, shm_need
from siri_megatron.launch.spec import Machine, Task
from siri_megatron.learner.architecture import Architecture
from siri_megatron.learner.init_config import hf_config
from siri_megatron.learner.layout import check_layout
from siri_megatron.paths import RunDir
from siri_megatron.rollout.engine_layout import check_engines
from siri_megatron.sft_config import SftConfig
from siri_megatron.weights.stored import check_stored

if TYPE_CHECKING:
    from siri_megatron.data.prompts import PromptSet

# Keys by how they begin: what a resume keeps (config.IDENTITY), and what a replay keeps.
IDENTITY_KEYS = ("model.dtype", "model.fingerprint", *IDENTITY)
REPLAY_KEEPS = ("model.fingerprint", "budget.schedule", "budget.l_m", "budget.cycle_steps", "budget.compression_steps",
                "budget.hold_steps", "budget.ranges", "budget.stages", "budget.closed", "budget.prompt_caps",
                "rollout.budget_grid", "rollout.temperature", "rollout.prompts_per_step", "rollout.max_refill")

PACKAGES: dict[Task, tuple[str, ...]] = {
    "train": ("torch", "megatron.core", "vllm", "aiohttp", "httpx"), "replay": ("torch", "megatron.core"),
    "rollout-only": ("vllm", "aiohttp", "httpx"), "eval": ("vllm", "aiohttp", "httpx"),
    "sft": ("torch", "megatron.core")}


@dataclass(frozen=True)
class Checked:
    """What the checks found: the model, the training prompts (if the task has any), the questions of every suite, the
    tensor-parallel sizes of `engines.urls`."""

    model: ModelFiles
    training: PromptSet | None
    suites: Mapping[str, PromptSet]
    given: tuple[int, ...] = ()


def this_machine() -> Machine:
    """Cores that this process may use, and whether there is an NVIDIA GPU."""
    gpus = visible_gpus()
    return Machine(cores=tuple(sorted(os.sched_getaffinity(0))), device="cuda" if gpus else "cpu", gpus=gpus)


def check_run(config: RunConfig, task: Task, *, replay: Path | None = None, resumed: bool = False) -> Checked:
    """Every check of a training run, replay, rollout-only run or evaluation, but for whose the run directory is.

    Args:
        replay: the run whose ledger is trained from.
        resumed: the run directory's checkpoints and exports are the run's own.

    Raises:
        ConfigError, DataError, ModelError: the first thing that is wrong.
    """
    check_packages([name for name in PACKAGES[task] if name != "vllm" or not config.engines.urls])
    check_device(config, this_machine())
    check_gpus(config, task, this_machine())
    model, trained = inspect_model(config.model.path), task in ("train", "replay")
    check_context(config, model.config)
    if task != "replay" and config.engines.tp > 1:
        check_engines(Architecture.of(model.config), config.engines.tp)
    if trained:
        check_learners(config, model)
    if task == "train" and config.push.backend == "shm":
        check_shm(shm_need(model))
    check_disk(config.run_dir, disk_left(config, model, resumed=resumed) if trained else SPARE_BYTES)
    _check_memory(config, model, task)
    if replay:
        check_replay(config, replay, model)
        return Checked(model, None, {})
    check_reward(config)
    given = check_given(config, trained=task == "train") if config.engines.urls else ()
    return Checked(model, *check_prompts(config, task), given)


def _check_memory(config: RunConfig, model: ModelFiles, task: Task) -> None:
    from siri_megatron.launch.memory import check_memory  # numpy: a supervisor does without it

    check_memory(config, model, task, this_machine())


def check_sft(config: SftConfig) -> None:
    """Every check of a supervised run that does not look at the run directory.

    Raises:
        ConfigError, ModelError: the first thing that is wrong.
    """
    check_packages(PACKAGES["sft"])
    check_output(config.output)
    context = config.data.max_prompt_tokens + config.max_response_tokens
    if config.init:
        check_layout(hf_config(config.init, config.family.tokenizer), config.learner, context=context)
    elif config.model_path:
        model = inspect_model(config.model_path)
        check_stored(model.tensors, check_layout(model.config, config.learner, context=context), model.path)


def check_output(path: Path) -> None:
    """A model can be written there, in place of nothing but another model."""
    if path.exists() and not (path / "config.json").is_file() and (not path.is_dir() or any(path.iterdir())):
        there = ", ".join(sorted(item.name for item in path.iterdir())[:4]) if path.is_dir() else "it is a file"
        raise ConfigError(f"output={path} exists and is no model directory: {there}",
                          rule="the trained model takes the place of what is at output",
                          fix=f"give a directory of its own, e.g. output={path}/NAME")
    if why := _unwritable(path.absolute().parent):
        raise ConfigError(f"output={path}: {why}", rule="the trained model is written there",
                          fix="choose another output=...")


def check_device(config: RunConfig, machine: Machine) -> None:
    """Nothing is asked for that needs a GPU where there is none, or a CPU where there is one."""
    wanted = (("model.spec", config.model.spec, "te"), ("push.backend", config.push.backend, "nccl"))
    for key, value, gpu_only in wanted:
        if value == gpu_only and machine.device != "cuda":
            raise ConfigError(f"{key}={value}, but this machine has no NVIDIA GPU", rule=f"{key}={value} needs a GPU",
                              fix=f"leave {key} out: its default suits this machine")
    if config.engines.in_process and machine.device == "cuda":
        raise ConfigError("engines.in_process, and this machine has a GPU",
                          rule="engines.in_process is for CPUs: while a step runs no request is read",
                          fix="leave engines.in_process out")


def check_learners(config: RunConfig, model: ModelFiles) -> None:
    """The model is one that the learners can run, whole, in this layout; its longest sample fits a micro-batch."""
    from siri_megatron.batching.lengths import capacity_at  # numpy: not before something needs it

    longest = config.data.max_prompt_tokens + config.budget.l_max
    arch = check_layout(model.config, config.learner, context=longest)
    check_stored(model.tensors, arch, model.path)
    capacity_at(config.budget.l_max, l_max=config.budget.l_max, max_prompt=config.data.max_prompt_tokens,
                tokens_per_micro_batch=config.batching.tokens_per_micro_batch, cp=config.learner.cp)


def check_reward(config: RunConfig) -> None:
    """A custom reward's function can be imported, and takes what it will be given."""
    if config.reward.custom is not None:
        from siri_megatron.reward.custom import check  # asyncio and Pebble: not before something needs it

        check(config.reward.custom)


def check_prompts(config: RunConfig, task: Task) -> tuple[PromptSet | None, dict[str, PromptSet]]:
    """What the collector will begin with: a tokenizer with stop ids, a forced text that leaves room for an answer, and
    prompts that are read, whole and not too long.

    Raises:
        ConfigError, DataError, ModelError: as `data.codec`, `data.prompts` and `rollout.suites` say it.
    """
    from siri_megatron.data.codec import TextCodec  # transformers: a second that a replay need not wait for
    from siri_megatron.data.prompts import suite_prompts, train_prompts
    from siri_megatron.rollout.forced import ForcedAnswer
    from siri_megatron.rollout.suites import suites_of

    codec = TextCodec.load(config.model.path)
    ForcedAnswer.of(config.reward, codec)
    training = train_prompts(config.data, codec) if task != "eval" else None
    suites = suite_prompts(config, codec)
    suites_of(config.evaluation, suites)
    return training, suites


def check_packages(names: Sequence[str]) -> None:
    """The packages can be found (they are not imported)."""
    missing = [name for name in names if not _findable(name)]
    if missing:
        raise ConfigError(f"not installed: {', '.join(missing)} (needed here: {', '.join(names)})",
                          rule="the environment holds the learner's and the engines' packages", fix="run `make setup`")


def _findable(name: str) -> bool:
    top, _, rest = name.partition(".")
    spec = importlib.util.find_spec(top)
    if spec is None or not rest:
        return spec is not None
    places = spec.submodule_search_locations or []
    return any((Path(place) / rest.replace(".", "/")).exists() for place in places)


def check_context(config: RunConfig, model_config: Mapping[str, Any]) -> None:
    """The longest prompt and the largest cap fit the engines' context, and that fits the model's positions."""
    prompt, cap = config.data.max_prompt_tokens, max(config.budget.l_max, config.evaluation.largest_budget)
    context, need = config.max_model_len, prompt + cap
    if need > context:
        raise ConfigError(f"a sequence may have {need} tokens (data.max_prompt_tokens={prompt} + largest cap {cap}), "
                          f"the engines' context engines.max_model_len={context}",
                          rule="max_prompt_tokens + largest of budget.l_max and evaluation budgets <= max_model_len",
                          fix=f"set engines.max_model_len={-(-need // 32) * 32} (or leave it out), or lower the cap")
    positions = model_config.get("max_position_embeddings")
    if isinstance(positions, int) and context > positions:
        raise ConfigError(f"the engines' context is {context} tokens, the model's max_position_embeddings={positions}",
                          rule="max_model_len <= max_position_embeddings",
                          fix=f"lower budget.l_max (now {config.budget.l_max}) or evaluation.budgets by "
                              f"{context - positions}, or start from a model with a longer context")


def check_replay(config: RunConfig, replay: Path, model: ModelFiles) -> None:
    """The ledger to replay covers the schedule from step 0 on, and comes from this model and schedule."""
    # pyarrow: half a second that other tasks need not wait for
    from siri_megatron.ledger.read import closed_steps, ranges

    closed = closed_steps(RunDir(replay).ledger) if RunDir(replay).ledger.is_dir() else []
    missing = sorted(set(range(config.budget.steps)) - set(closed))
    if missing:
        raise ConfigError(f"{RunDir(replay).ledger} holds {len(closed)} closed steps, the schedule has "
                          f"{config.budget.steps}; missing are {ranges(missing)}",
                          rule="--replay trains every step of the schedule from the ledger of RUN",
                          fix="give the directory of a complete run whose checkpoint.keep_ledger was left out, or "
                              "lower budget.cycles")
    recorded, now = load(RunDir(replay).config), replace_fingerprint(config, model)
    if differing := _differences(recorded, now, REPLAY_KEEPS):
        raise ConfigError(f"{replay} was recorded under another config: {differing}",
                          rule="a replay starts from the recorded run's model and follows its caps",
                          fix=f"undo these changes, or start from {RunDir(replay).config}")
    rules = recorded.reward.length_rule, config.reward.length_rule
    if "dot" in rules and rules[0] != rules[1]:
        raise ConfigError(f"{replay} was recorded with reward.length_rule={rules[0]}, the config now has {rules[1]}",
                          rule="dot cuts responses when they are collected: a ledger holds them cut, or whole",
                          fix=f"set reward.length_rule={rules[0]}, or collect anew")


def replace_fingerprint(config: RunConfig, model: ModelFiles, training: PromptSet | None = None) -> RunConfig:
    """The config with the fingerprints of the starting weights and of the training prompts (if any) in it."""
    start = config.model.model_copy(update={"fingerprint": model.fingerprint})
    data = config.data.model_copy(update={"fingerprint": training.fingerprint}) if training is not None else config.data
    return config.model_copy(update={"model": start, "data": data})


def check_run_dir(paths: RunDir, *, shared: bool) -> None:
    """The run directory can be written, and holds no other run (unless `shared`: resumed, or put aside)."""
    if why := _unwritable(paths.root):
        raise ConfigError(f"run directory {paths.root}: {why}", rule="a run writes everything below runs_dir/name",
                          fix="choose another runs_dir=... or name=...")
    if not shared and (held := holds_run(paths)):
        raise ConfigError(f"run directory {paths.root} already holds a run ({held})",
                          rule="a run directory belongs to one run",
                          fix="--resume to go on with it, name=OTHER to keep it and start another, "
                              f"--fresh to start again (it is kept as {paths.root.name}.previous)")


def _unwritable(path: Path) -> str:
    """Why nothing can be made there; empty if something can."""
    ancestor = existing(path)
    try:
        tempfile.TemporaryFile(dir=ancestor).close()  # asking the permission bits says nothing about root or read-only
    except OSError as error:
        return f"{ancestor} cannot be written ({error.strerror}; user id {os.getuid()})"
    return ""


def check_same_run(config: RunConfig, paths: RunDir) -> None:
    """A resumed run keeps model dtype, data and method; layout, machine and paths may differ."""
    if not paths.config.is_file():
        return
    before = load(paths.config)
    if identity_hash(before) == identity_hash(config):
        return
    raise ConfigError(f"{paths.root} was started with another config: {_differences(before, config, IDENTITY_KEYS)}",
                      rule="a resumed run keeps starting model, seed, data, reward, budget, rollout, optimizer, "
                           "algorithm, phases and batching",
                      fix="undo these changes, or start another run with name=OTHER")


def _differences(before: RunConfig, now: RunConfig, keys: tuple[str, ...]) -> str:
    """What differs among keys that begin with one of `keys`."""
    old, new = flat(before.model_dump(mode="json")), flat(now.model_dump(mode="json"))
    return "; ".join(f"{key} was {old.get(key)}, is {new.get(key)}" for key in sorted(old.keys() | new.keys())
                     if old.get(key) != new.get(key) and key.startswith(keys) and not key.startswith(FREE))
