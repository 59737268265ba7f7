"""The run configuration: typed, one sentence per field, unknown keys refused. Imports no torch.

`load(path, overrides)` reads YAML (with `extends: other.yaml`), applies `key.sub=value` overrides and validates.
A resolved copy goes into the run directory; `identity_hash` covers what must match to resume a run, everything
else (layout, paths, machine) may change between a run and its resumption.

    model, method, rules, phases, budget, data, rollout, evaluation, launch   the sections
    length_rule   whether a rule suits the rest    run   all of them, the identity    load   YAML, overrides
"""

from siri_megatron.config.base import Beta, Budgets, RunName, Section
from siri_megatron.config.budget import BudgetConfig, ClosedLoopConfig
from siri_megatron.config.data import DataConfig, DatasetConfig
from siri_megatron.config.evaluation import EvalConfig, SuiteConfig
from siri_megatron.config.launch import ComponentConfig, LaunchConfig, SlurmConfig, signal_lead_s
from siri_megatron.config.load import apply_overrides, as_yaml, describe, flat, load, merge, read_yaml, save, validate
from siri_megatron.config.method import Advantage, AlgorithmConfig, BatchingConfig, Overlong, RewardConfig, Scope
from siri_megatron.config.model import LearnerConfig, ModelConfig, OptimizerConfig
from siri_megatron.config.phases import PhaseOverrides, PhasesConfig
from siri_megatron.config.rollout import EngineConfig, PushConfig, RolloutConfig
from siri_megatron.config.rules import DotConfig, LaserDConfig, LeashConfig, ProrlConfig
from siri_megatron.config.run import FREE, IDENTITY, CheckpointConfig, RunConfig, identity_hash

__all__ = [
    "FREE", "IDENTITY", "Advantage", "AlgorithmConfig", "BatchingConfig", "Beta", "BudgetConfig", "Budgets",
    "CheckpointConfig", "ClosedLoopConfig", "ComponentConfig", "DataConfig", "DatasetConfig", "DotConfig",
    "EngineConfig", "EvalConfig", "LaserDConfig", "LaunchConfig", "LearnerConfig", "LeashConfig", "ModelConfig",
    "OptimizerConfig", "Overlong", "PhaseOverrides", "PhasesConfig", "ProrlConfig", "PushConfig", "RewardConfig",
    "RolloutConfig", "RunConfig", "RunName", "Scope", "Section", "SlurmConfig", "SuiteConfig", "apply_overrides",
    "as_yaml", "describe", "flat", "identity_hash", "load", "merge", "read_yaml", "save", "signal_lead_s", "validate",
]
