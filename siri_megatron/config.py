"""The run configuration: typed, one sentence per field, unknown keys refused. Imports no torch.

`load(path, overrides)` reads YAML (with `extends: other.yaml`), applies `key.sub=value` overrides and validates.
A resolved copy goes into the run directory; `identity_hash` covers what must match to resume a run, everything
else (layout, paths, machine) may change between a run and its resumption.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from siri_megatron.errors import ConfigError
from siri_megatron.files import write_text


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True,
                              allow_inf_nan=False)


RunName = Annotated[str, Field(pattern=r"^\w[\w.+-]*$")]  # one directory below runs_dir, whatever the file system
Budgets = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)]  # response tokens, one or several
Beta = Annotated[float, Field(ge=0, lt=1)]


class ModelConfig(Section):
    path: Path
    """Hugging Face model directory (config.json, safetensors, tokenizer) that the run starts from."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Parameter dtype of learners and engines."""
    spec: Literal["auto", "local", "te"] = "auto"
    """Megatron layer spec: `te` needs a GPU, `local` is the CPU one, `auto` picks by the machine."""
    fingerprint: str = ""
    """Filled in at start from the directory's content; a resume from other starting weights is refused."""


class DataConfig(Section):
    source: Literal["digit_sum", "jsonl"] = "digit_sum"
    """Where prompts come from: the generated digit-sum family or JSONL files with `prompt` and `answer`."""
    min_terms: int = Field(3, ge=2)
    """digit_sum: the fewest labelled digits in a problem."""
    max_terms: int = Field(9, le=12)
    """digit_sum: the most labelled digits in a problem."""
    train_problems: int = Field(20000, ge=1)
    """digit_sum: number of training problems (held-out ones are disjoint by a hash of the operands)."""
    train_path: Path | None = None
    """jsonl: training prompts."""
    eval_path: Path | None = None
    """jsonl: held-out prompts."""
    template: str | None = None
    """Prompt template with `{prompt}`; None: the text as it stands, or the chat template if `chat` is set."""
    chat: bool = False
    """Wrap each prompt as a user turn with the tokenizer's own chat template."""
    max_prompt_tokens: int = Field(64, ge=1)
    """Longer prompts are refused at start (their number and the longest are named)."""

    @model_validator(mode="after")
    def _ordered(self) -> DataConfig:
        if self.min_terms > self.max_terms:
            raise ValueError(f"min_terms={self.min_terms} is above max_terms={self.max_terms}: lower min_terms")
        return self


class RewardConfig(Section):
    verifier: Literal["exact", "math"] = "exact"
    """`exact`: the generated family's own answer format; `math`: math-verify in killable workers."""
    scope: Literal["all", "after_think", "boxed"] = "all"
    """Where an answer may stand: anywhere, after the closing think tag, or only in \\boxed{}."""
    timeout_s: float = Field(5.0, gt=0)
    """Seconds before a verification is killed and counted as `failed` (never as wrong)."""
    workers: int = Field(1, ge=1)
    """Verifier worker processes."""

    @model_validator(mode="after")
    def _scope_is_read(self) -> RewardConfig:
        if self.verifier == "exact" and self.scope != "all":
            raise ValueError(f"scope={self.scope} with verifier=exact, which reads the generated family's own format "
                             "wherever it stands: leave scope out, or set verifier=math")
        return self


class BudgetConfig(Section):
    schedule: Literal["cosine", "stair", "stair_cosine", "constant"] = "cosine"
    """How the cap moves within a cycle (docs/method.md)."""
    l_min: int = Field(ge=1)
    """Smallest cap, response tokens."""
    l_max: int = Field(ge=1)
    """Largest cap, response tokens; engines and packs are provisioned for it at launch."""
    cycle_steps: int = Field(ge=2)
    """Steps of one cycle: a compression phase, then an expansion phase."""
    cycles: int = Field(ge=1)
    """Number of cycles; a run has cycles x cycle_steps steps."""

    @property
    def steps(self) -> int:
        return self.cycle_steps * self.cycles

    @model_validator(mode="after")
    def _ordered(self) -> BudgetConfig:
        if self.l_min > self.l_max:
            raise ValueError(f"l_min={self.l_min} is above l_max={self.l_max}: l_min <= l_max; lower l_min")
        if self.cycle_steps % 2:
            raise ValueError(f"cycle_steps={self.cycle_steps} is odd: phases are half a cycle; use an even number")
        return self


class RolloutConfig(Section):
    prompts_per_step: int = Field(16, ge=1)
    """Prompts (groups) a step."""
    samples_per_prompt: int = Field(8, ge=2)
    """Samples a prompt: the group size G of GRPO."""
    temperature: float = Field(1.0, gt=0)
    """Sampling temperature; the learner rescales its logits by the same value."""
    lag: Literal[0] = 0
    """Steps that the collector may run ahead (only the synchronous 0 so far)."""
    budget_grid: Budgets = (32, 48, 64, 96, 128)
    """Budgets at which every rollout is re-scored: the curve J(B). One above the step's cap counts as the cap."""
    timeout_s: float = Field(300.0, gt=0)
    """Seconds that the collection of one step may take."""


class EngineConfig(Section):
    count: int = Field(2, ge=1)
    """Number of vLLM servers."""
    max_num_seqs: int = Field(256, ge=1)
    """Concurrent sequences an engine."""
    max_model_len: int | None = None
    """Engine context, tokens; None: max_prompt_tokens + l_max, rounded up to 32."""
    kv_cache_gib: float = Field(1.0, gt=0)
    """KV cache an engine, GiB (CPU)."""
    base_port: int = Field(0, ge=0, le=65000)
    """First port; engine i listens on base_port+i. 0: free ports are reserved by the supervisor."""
    host: str = "127.0.0.1"
    """Address that engines and collector bind: loopback, or a private interface."""
    start_timeout_s: float = Field(300.0, gt=0)
    """Seconds until an engine must be healthy."""
    extra_args: tuple[str, ...] = ()
    """Further arguments of `vllm serve`."""

    @model_validator(mode="after")
    def _ports_exist(self) -> EngineConfig:
        if self.base_port and (last := self.base_port + self.count - 1) > 65535:
            raise ValueError(f"base_port={self.base_port} with count={self.count} reaches port {last}: ports end at "
                             "65535; lower base_port")
        return self


class PushConfig(Section):
    backend: Literal["shm", "gloo", "nccl"] = "shm"
    """Weight transport: shared memory (one host), gloo (any hosts, CPU), nccl (GPU)."""
    timeout_s: float = Field(120.0, gt=0)
    """Deadline of one push, enforced from outside the collective."""


class LearnerConfig(Section):
    tp: int = Field(1, ge=1)
    """Tensor-parallel size."""
    pp: int = Field(1, ge=1)
    """Pipeline-parallel size."""
    dp: int = Field(1, ge=1)
    """Data-parallel size; the world is tp x pp x dp."""
    threads: int = Field(1, ge=1)
    """CPU threads a learner."""
    pin_cores: bool = False
    """Pin learner i (and engine i) to core i modulo the number of cores."""
    collective_timeout_s: float = Field(60.0, gt=0)
    """Timeout of the model's collectives. Ranks never wait inside one for something that is not there yet."""
    control_timeout_s: float = Field(600.0, gt=0)
    """Longest wait on the control plane for rank 0's next decision while its heartbeat is alive."""
    heartbeat_timeout_s: float = Field(30.0, gt=0)
    """Silence of rank 0's heartbeat after which the other ranks give up."""

    @property
    def world_size(self) -> int:
        return self.tp * self.pp * self.dp


class OptimizerConfig(Section):
    lr: float = Field(gt=0)
    """Learning rate (constant after warm-up in RL)."""
    warmup_steps: int = Field(0, ge=0)
    """Linear warm-up, optimizer steps."""
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    """AdamW betas."""
    eps: float = Field(1e-8, gt=0)
    """AdamW epsilon."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW weight decay (norms and biases excluded)."""
    clip_grad: float = Field(1.0, gt=0)
    """Global gradient-norm clip."""


class AlgorithmConfig(Section):
    loss: Literal["grpo", "dapo", "dr_grpo"] = "grpo"
    """Aggregation: grpo = sample mean of token means (as SIRI prints it), dapo = token mean, dr_grpo = constant."""
    advantage: Literal["group_std", "group_mean"] = "group_std"
    """(R - mean)/std within the group, or R - mean (Dr.GRPO)."""
    clip_low: float = Field(0.2, gt=0)
    """Lower clip range of the probability ratio."""
    clip_high: float = Field(0.28, gt=0)
    """Upper clip range of the probability ratio."""
    drop_uniform_groups: bool = True
    """Leave out groups whose rewards are all equal: their advantage is zero (DAPO's filter without refill)."""
    mini_batches: int = Field(2, ge=1)
    """Optimizer steps a rollout step: the groups are split into so many disjoint parts."""
    dr_grpo_tokens: int | None = None
    """dr_grpo: constant token denominator; None: l_max. It never follows the cap."""


class BatchingConfig(Section):
    mode: Literal["packed", "bucketed"] = "packed"
    """packed rows (thd), or padded length buckets (bshd) with few static shapes."""
    tokens_per_micro_batch: int = Field(4096, ge=1)
    """Token capacity of a micro-batch at the largest cap; the plan never exceeds it."""
    buckets: int = Field(4, ge=1)
    """bucketed: number of length buckets."""


class EvalConfig(Section):
    problems: int = Field(256, ge=1)
    """Held-out problems an evaluation."""
    samples: int = Field(1, ge=1)
    """Samples a problem."""
    budgets: Budgets = (32, 48, 64, 128)
    """Budgets at which accuracy is reported; generation runs once, at the largest."""
    temperature: float = Field(1.0, ge=0)
    """Evaluation temperature."""
    at_start: bool = True
    """Evaluate the starting weights."""
    at_phase_ends: bool = True
    """Evaluate every phase end."""


class CheckpointConfig(Section):
    every_steps: int = Field(8, ge=1)
    """Commit every so many steps (and at every phase end, at the last step and on a signal)."""
    keep: int = Field(2, ge=1)
    """Newest checkpoints kept; phase ends are kept beside them."""
    export_phase_ends: bool = True
    """Export a Hugging Face directory at every phase end."""


class LaunchConfig(Section):
    stop_grace_s: float = Field(10.0, gt=0)
    """Seconds after Ctrl-C or SIGTERM in which learners may finish their step and commit; then everything is killed."""


class RunConfig(Section):
    """One training run."""

    name: RunName
    """Name of the run: its directory is runs_dir/name."""
    runs_dir: Path = Path("runs")
    """Directory of the runs."""
    seed: int = 1
    """Seed of every random stream (problem order, sampling seeds)."""
    reproducible: bool = False
    """Per-request sampling seeds and fixed batching: a resumed run is bit-equal to one that never stopped."""
    model: ModelConfig
    data: DataConfig = DataConfig()
    reward: RewardConfig = RewardConfig()
    budget: BudgetConfig
    rollout: RolloutConfig = RolloutConfig()
    engines: EngineConfig = EngineConfig()
    push: PushConfig = PushConfig()
    learner: LearnerConfig = LearnerConfig()
    optimizer: OptimizerConfig
    algorithm: AlgorithmConfig = AlgorithmConfig()
    batching: BatchingConfig = BatchingConfig()
    evaluation: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    launch: LaunchConfig = LaunchConfig()
    tensorboard: bool = True
    """Write TensorBoard scalars beside metrics.jsonl."""

    @property
    def run_dir(self) -> Path:
        return self.runs_dir / self.name

    @property
    def max_model_len(self) -> int:
        """Engine context: the configured one, or prompt + l_max rounded up to 32."""
        need = self.data.max_prompt_tokens + max(self.budget.l_max, *self.evaluation.budgets)
        return self.engines.max_model_len or -(-need // 32) * 32


# What must match to resume: the model, the data and the method. Layout, machine and paths may change.
IDENTITY = ("seed", "reproducible", "data", "reward", "budget", "rollout", "optimizer", "algorithm", "batching")


def identity_hash(config: RunConfig) -> str:
    """Hash of everything that must match between a checkpoint and the run that resumes from it."""
    dump = config.model_dump(mode="json")
    picked = {name: dump[name] for name in IDENTITY}
    picked["model"] = {"dtype": config.model.dtype, "fingerprint": config.model.fingerprint}
    picked["rollout"].pop("timeout_s")
    return hashlib.sha256(json.dumps(picked, sort_keys=True).encode()).hexdigest()[:16]


def read_yaml(path: Path, heirs: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a YAML mapping, following `extends:` (relative to the file); the nearer of file and `heirs` wins."""
    heirs = (*heirs, path.resolve())
    if heirs.count(heirs[-1]) > 1:
        raise ConfigError(f"config {path} extends itself: {' extends '.join(heir.name for heir in heirs)}",
                          rule="extends leads to a file that extends nothing", fix="take one of these lines out")
    raw = _mapping(path)
    parent = raw.pop("extends", None)
    if parent is None:
        return raw
    if not isinstance(parent, str):
        raise ConfigError(f"config {path}: extends is {parent!r}", rule="extends names one YAML file, beside this one",
                          fix="chain files instead: each extends the next")
    return _merge(read_yaml(path.parent / parent, heirs), raw)


def _mapping(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"config {path} {'is no file' if path.exists() else 'does not exist'}",
                          rule="CONFIG is a YAML file", fix="give the path of one; shipped ones lie in configs/")
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"config {path} is not readable YAML: {error}", rule="CONFIG is a YAML file in UTF-8",
                          fix="mend the place it names") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"config {path} holds a {type(raw).__name__}, not a mapping",
                          rule="CONFIG is a YAML mapping", fix="write `key: value` lines")
    return raw


def _merge(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def apply_overrides(raw: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Apply `a.b=value` on top of a raw mapping. The value is YAML; what is not YAML is text as it stands."""
    for text in overrides:
        key, sep, value = text.partition("=")
        if not sep or not key:
            raise ConfigError(f"override {text!r} has no '='", rule="overrides are key.sub=value",
                              fix="for example budget.l_min=48")
        nested = _scalar(value)
        for part in reversed(key.split(".")):
            nested = {part: nested}
        raw = _merge(raw, nested)
    return raw


def _scalar(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def validate(raw: dict[str, Any], origin: str) -> RunConfig:
    """Turn a raw mapping into a RunConfig; every problem is named with its key and value."""
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{origin}: " + describe(error), rule="keys, types and ranges as in docs/configuration.md",
                          fix="correct the keys named above") from None


def describe(error: ValidationError) -> str:
    """Pydantic's findings, a line each: key, value, complaint."""
    found = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"]) or "config"
        value = "" if item["type"] == "missing" or isinstance(item["input"], dict) else f" = {item['input']!r}"
        message = "unknown key" if item["type"] == "extra_forbidden" else item["msg"].removeprefix("Value error, ")
        found.append(f"{key}{value}: {message}")
    return "; ".join(found)


def load(path: Path, overrides: list[str] | None = None) -> RunConfig:
    """Read, override, validate.

    Raises:
        ConfigError: the file is missing or not YAML, an override is malformed, a key is unknown or out of range.
    """
    return validate(apply_overrides(read_yaml(path), overrides or []), str(path))


def save(config: Section, path: Path) -> None:
    """Write the resolved config as YAML (readable by `load`). Atomic: a resume must be able to read it after a kill."""
    write_text(path, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
