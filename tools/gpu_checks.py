"""What `gpu_smoke.py` tries: commands, and how what they wrote is judged.

The oracle of every learner is the same: the ledger that they train from has the log-probs of transformers (float32, on
the CPU) in place of an engine's, so that the run's own `mismatch_mean_abs` at step 0 is its distance from transformers.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siri_megatron import config as configs
from siri_megatron.config import RunConfig
from siri_megatron.estimate.host import learner_stages
from siri_megatron.learner.architecture import Architecture
from siri_megatron.observe import jsonl
from siri_megatron.paths import RunDir

REPO = Path(__file__).resolve().parents[1]
TINY = REPO / "configs" / "tiny.yaml"
SHORT = ("budget.cycle_steps=2", "budget.cycles=1", "rollout.prompts_per_step=8", "checkpoint.every_steps=1",
         "checkpoint.keep=4", "evaluation.at_start=false", "evaluation.at_phase_ends=false", "reproducible=false",
         "learner.pp=1", "learner.pin_cores=false")
"""Two steps of tiny.yaml, one of each phase."""
WIDE = {"model_type": "qwen2", "hidden_act": "silu", "hidden_size": 1024, "intermediate_size": 2816, "head_dim": 64,
        "num_hidden_layers": 16, "num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": 32768,
        "rms_norm_eps": 1e-6, "max_position_embeddings": 4096, "tie_word_embeddings": False, "rope_theta": 10000.0}
"""Of the memory check: 0.3 B parameters."""
LONG = ("budget.l_max=2048", "budget.l_min=1024", "rollout.budget_grid=[1024, 2048]", "evaluation.budgets=[2048]",
        "rollout.prompts_per_step=4", "batching.tokens_per_micro_batch=16384", "algorithm.mini_batches=1")
DRAWN = {"float32": 1e-4, "bfloat16": 6e-2}
"""Mean |log-prob - transformers'| of tokens drawn at random, nats. Transformers itself in bfloat16 is 0.029 from
float32 on such tokens (their log-probs are -6.6 in the mean)."""
SAMPLED = {"float32": 1e-4, "bfloat16": 3e-2}
"""Mean |engine - learner| of tokens that the model sampled, whose log-probs are small."""
SAME = 0.05
"""Gradient norms of two layouts, relative, in bfloat16."""
MEMORY = (0.5, 1.1)
"""Measured over predicted: above, a run that the plan allows may fail; below, the plan refuses what would fit."""
MINUTES = 60.0
FIRST = "0"
"""GPU of a learner that is alone, as nvidia-smi counts."""


class Wrong(Exception):
    """What a check found is not as it should be."""


@dataclass(frozen=True)
class Setting:
    """Where the checks run.

    Attributes:
        place: directory of logs and runs.
        rehearsal: on the CPU.
    """

    place: Path
    gpus: int
    rehearsal: bool = False

    @property
    def dtype(self) -> str:
        return "float32" if self.rehearsal else "bfloat16"

    def run_dir(self, name: str) -> RunDir:
        return RunDir(self.place / name)


@dataclass(frozen=True)
class Measured:
    """What a command that ended with 0 has left. peak: bytes of the first GPU."""

    log: Path
    peak: int


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        gpus: that it takes.
        judge: says what was found.
        after: checks whose results it uses.
        rehearsed: the CPU can run its command as well.
    """

    name: str
    gpus: int
    command: tuple[str, ...]
    judge: Callable[[Measured], str]
    limit_s: float = 5 * MINUTES
    after: tuple[str, ...] = ()
    rehearsed: bool = True
    prepare: Callable[[], None] = lambda: None


def checks(setting: Setting) -> list[Check]:
    """All, in an order in which what is needed comes first."""
    return [Check("doctor", 0, siri("doctor", "--dir", str(setting.place)), counted, 10 * MINUTES),
            Check("ledger", 0, made(setting, "ledger"), lambda _: "drawn, with transformers' log-probs"),
            *learners(setting), *checkpoints(setting), *engines(setting)]


# --- learners: each is a replay


def learners(setting: Setting) -> list[Check]:
    """Both specs, both kinds of batch, and every kind of layout that two GPUs have."""
    layouts = {"tp2": ("learner.tp=2", "learner.sequence_parallel=true"), "pp2": ("learner.pp=2",),
               "cp2": ("learner.cp=2",), "dp2": ("learner.dp=2", "learner.distributed_optimizer=true",
                                                 "learner.overlap=true")}
    return [replay(setting, "float32", 1, "model.dtype=float32", dtype="float32"), replay(setting, "bfloat16", 1),
            replay(setting, "padded", 1, "batching.mode=bucketed", "batching.buckets=3"),
            *(replay(setting, name, 2, *keys, like="bfloat16") for name, keys in layouts.items())]


def replay(setting: Setting, name: str, gpus: int, *keys: str, dtype: str = "", like: str = "") -> Check:
    """like: the check whose gradient norm it must have."""
    command = train(setting, name, *keys, flags=("--replay", str(setting.run_dir("ledger").root)))
    bound = DRAWN[dtype or setting.dtype]

    def judge(_: Measured) -> str:
        said = [parity(setting.run_dir(name), bound), *attention(setting.run_dir(name))]
        return ", ".join([*said, agreed(setting.run_dir(name), setting.run_dir(like))] if like else said)

    return Check(f"learner {name}", gpus, command, judge, after=("ledger", *([f"learner {like}"] if like else [])))


def parity(run: RunDir, bound: float) -> str:
    """The learner's log-probs are transformers'."""
    first = steps(run)[0]
    if not first["mismatch_mean_abs"] <= bound:
        raise Wrong(f"mean |log-prob - transformers'| is {first['mismatch_mean_abs']:.1e}, the bound {bound:.0e}")
    return f"from transformers {first['mismatch_mean_abs']:.1e} in the mean, {first['mismatch_max_abs']:.1e} at most"


def attention(run: RunDir) -> list[str]:
    """Which of Transformer Engine's kernels ran, as it says itself (NVTE_DEBUG); none of them in float32.

    Raises:
        Wrong: its plain one. It takes over without a word, and holds a score for every pair of tokens of a segment.
    """
    text = (run.logs / "learner-0.log").read_text(errors="replace")
    ran = sorted(set(re.findall(r"Running with (\w+) backend", text)))
    if "UnfusedDotProductAttention" in ran:
        why = re.findall(r"Disabling (?:Fused|Flash)Attention.*", text)
        raise Wrong(f"te's attention is unfused: {why[0] if why else 'it does not say why'}")
    return [" and ".join(ran)] if ran else []


def agreed(run: RunDir, other: RunDir) -> str:
    """Two layouts have the same gradient."""
    norm, reference = steps(run)[0]["grad_norm"], steps(other)[0]["grad_norm"]
    if not abs(norm / reference - 1) <= SAME:
        raise Wrong(f"gradient norm {norm:.4g}, {other.root.name} has {reference:.4g}")
    return f"gradient norm {norm:.4g}, {other.root.name} has {reference:.4g}"


def steps(run: RunDir) -> list[dict[str, Any]]:
    """The metrics of a run that ended well, by step. JSON has no NaN: it stands there as null."""
    found = [{key: math.nan if value is None else value for key, value in record.items()}
             for record in jsonl.read(run.metrics)]
    if [record["step"] for record in found] != [0, 1]:
        raise Wrong(f"{run.metrics} has steps {[record['step'] for record in found]}, not 0 and 1")
    return found


# --- what a learner has written


def checkpoints(setting: Setting) -> list[Check]:
    run = setting.run_dir("bfloat16")
    again = setting.run_dir("resumed")
    resume = siri("train", str(again.config), "--resume", "--replay", str(setting.run_dir("ledger").root),
                  "name=resumed")
    convert = siri("convert", "megatron-to-hf", str(run.checkpoint(2)), str(setting.place / "converted"), "--verify")
    memory = train(setting, "memory", *LONG, f"model.path={setting.place / 'wide'}",
                   flags=("--replay", str(setting.run_dir("wide-ledger").root)))
    return [
        Check("resume", 1, resume, lambda _: agreed_end(again, run), after=("learner bfloat16",),
              prepare=lambda: break_off(run, again)),
        Check("conversion", 1, convert, lambda _: "of its checkpoint: tensors and logits are equal",
              after=("learner bfloat16",)),
        Check("wide ledger", 1, (sys.executable, str(REPO / "tools" / "gpu_checks.py"), str(setting.place)),
              lambda _: "drawn", rehearsed=False),
        Check("memory", 1, memory, lambda done: remembered(setting, done.peak), after=("wide ledger",),
              rehearsed=False)]


def break_off(run: RunDir, other: RunDir) -> None:
    """A copy of a run as if it had been killed before its last commit."""
    shutil.rmtree(other.root, ignore_errors=True)
    shutil.copytree(run.root, other.root)
    shutil.rmtree(other.checkpoint(2))
    other.result.unlink()


def agreed_end(run: RunDir, other: RunDir) -> str:
    """The step that was trained once more is the one that was trained first."""
    one, two = steps(run)[1]["grad_norm"], steps(other)[1]["grad_norm"]
    if not abs(one / two - 1) <= SAME:
        raise Wrong(f"step 1 after a resume has gradient norm {one:.4g}, before it {two:.4g}")
    return f"step 1 once more: gradient norm {one:.4g}, before {two:.4g}"


def write_wide(place: Path) -> None:
    """A model that fills some of a GPU, with small random weights, and a ledger for it."""
    import torch
    from made_ledger import record
    from safetensors.torch import save_file

    from siri_megatron.weights.names import tensors

    (place / "wide").mkdir(exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):  # of a few digits; the rest of the vocabulary has no text
        shutil.copy(REPO / "configs" / "models" / "tiny-digits" / name, place / "wide")
    generator = torch.Generator().manual_seed(0)
    save_file({part.name: (torch.randn(part.shape, generator=generator) * 0.02).bfloat16()
               for part in tensors(Architecture.of(WIDE))}, place / "wide" / "model.safetensors")
    (place / "wide" / "config.json").write_text(json.dumps(WIDE))
    record([*SHORT, *LONG, f"runs_dir={place}", "name=wide-ledger", f"model.path={place / 'wide'}"])


def remembered(setting: Setting, peak: int) -> str:
    """What the first GPU held is what the plan says of the learner."""
    config: RunConfig = configs.load(setting.run_dir("memory").config)
    predicted = learner_stages(config, Architecture.of(WIDE), spec="te")[0].on_device
    said = f"measured {peak / 1e9:.1f} GB (the driver's figure), predicted {predicted / 1e9:.1f} GB"
    if not MEMORY[0] <= peak / predicted <= MEMORY[1]:
        raise Wrong(said)
    return said


def used_bytes() -> int:
    """What is taken of the first GPU, as the driver's own tool says it; 0 if it does not answer."""
    command = ["nvidia-smi", "-i", FIRST, "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return int(done.stdout) * 2**20 if done.stdout.strip().isdigit() else 0


# --- engines, and whole runs


def engines(setting: Setting) -> list[Check]:
    nccl = "gloo" if setting.rehearsal else "nccl"
    probed = ("push.probe_every=1", "engines.count=1", f"push.probe_bound={SAMPLED[setting.dtype]}")
    return [
        Check("engine alone", 1, train(setting, "rollouts", "engines.count=1", flags=("--rollout-only",)),
              lambda _: generated(setting.run_dir("rollouts")), 15 * MINUTES),
        Check(f"run over {nccl}", 2, train(setting, "whole", *probed, f"push.backend={nccl}"),
              lambda _: whole(setting.run_dir("whole"), SAMPLED[setting.dtype]), 15 * MINUTES),
        Check("run on one GPU", 1, train(setting, "one", *probed, *shared(setting, 1)),
              lambda _: whole(setting.run_dir("one"), SAMPLED[setting.dtype]), 15 * MINUTES),
        Check("run on shared GPUs", 2, train(setting, "turns", *probed, *shared(setting, 2), "learner.tp=2",
                                             "engines.tp=2"),
              lambda _: whole(setting.run_dir("turns"), SAMPLED[setting.dtype]), 15 * MINUTES)]


def shared(setting: Setting, gpus: int) -> tuple[str, ...]:
    """Learners and engine on the same GPUs."""
    return "push.backend=shm", *(() if setting.rehearsal else (
        "launch.placement=turns", f"launch.learner.gpus_per_node={gpus}", f"launch.engines.gpus_per_node={gpus}",
        "engines.extra_args=[--gpu-memory-utilization=0.4]"))


def generated(run: RunDir) -> str:
    speeds = ", ".join(f"{record['generation_tokens_per_s']:,.0f}" for record in steps(run))
    return f"two steps sampled, {speeds} tokens/s"


def whole(run: RunDir, bound: float) -> str:
    """Engines have the learner's weights, at the start and after a push."""
    for record in steps(run):
        for key in ("mismatch_mean_abs", "probe_mean_abs"):
            if not record[key] <= bound:
                raise Wrong(f"{key} of step {record['step']} is {record[key]:.1e}, the bound {bound:.0e}")
    last = steps(run)[-1]
    return f"trained; engine from learner {last['mismatch_mean_abs']:.1e} after a push of {last['push_s']:.2f} s"


# --- commands


def siri(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "siri_megatron.cli", *arguments)


def train(setting: Setting, name: str, *keys: str, flags: tuple[str, ...] = ()) -> tuple[str, ...]:
    return siri("train", str(TINY), "--fresh", *flags, f"name={name}", f"runs_dir={setting.place}", *SHORT,
                f"model.dtype={setting.dtype}", *keys)


def made(setting: Setting, name: str) -> tuple[str, ...]:
    return (sys.executable, str(REPO / "tools" / "made_ledger.py"), str(setting.place), name, *SHORT)


def counted(done: Measured) -> str:
    """The doctor's counts, its last line; it has failed if a check of its own has."""
    return done.log.read_text().splitlines()[-1]


if __name__ == "__main__":
    write_wide(Path(sys.argv[1]))
