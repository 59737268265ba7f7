"""`common.pt`: what Megatron-LM reads of a checkpoint beside the tensors, and the model that it says it is.

Read in Megatron-LM's `training/checkpointing.py` (August 2026), not run here: `load_args_from_checkpoint`
(`--use-checkpoint-args`) takes the fields of `args` that `training_args` writes, `load_checkpoint` wants
`checkpoint_version` >= 3, and with `release` in the tracker asks neither for optimizer nor for random state.
`content_metadata` is what `sharded_state_dict` gets when it is loaded; it decides how keys are made.
Not taken from a checkpoint by Megatron-LM, so to be given on its command line: `--qk-layernorm`, `--norm-epsilon`,
`--use-rope-scaling`, `--rope-scaling-factor`, `--make-vocab-size-divisible-by`.
"""

from __future__ import annotations

import argparse
import pickle
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from siri_megatron.convert.source import Weights
from siri_megatron.errors import ModelError
from siri_megatron.learner.architecture import Architecture
from siri_megatron.learner.rope import Rope

FILE = "common.pt"


def common_state(weights: Weights, dtype: torch.dtype, tp: int, pp: int) -> dict[str, Any]:
    """Content of common.pt for a checkpoint of weights alone."""
    return {"args": training_args(weights, dtype, tp, pp), "checkpoint_version": 3.0, "iteration": 0,
            "content_metadata": {"singleton_local_shards": False, "chained_optim_avoid_prefix": True}}


def training_args(weights: Weights, dtype: torch.dtype, tp: int, pp: int) -> Namespace:
    """The model and its layout in the names of Megatron-LM's arguments."""
    arch = weights.arch
    return argparse.Namespace(
        **_described(arch), seq_length=arch.max_positions, max_position_embeddings=arch.max_positions,
        padded_vocab_size=arch.padded_vocab(tp), make_vocab_size_divisible_by=1, norm_epsilon=arch.norm_eps,
        group_query_attention=True, position_embedding_type="rope", add_position_embedding=True,
        use_rotary_position_embeddings=True, rotary_percent=1.0, rotary_interleaved=False,
        **_rope_scaling(arch.rope),
        add_bias_linear=False, squared_relu=False, swiglu=True, apply_layernorm_1p=False, normalization="RMSNorm",
        apply_query_key_layer_scaling=False, attention_dropout=0.0, hidden_dropout=0.0, num_experts=None,
        tokenizer_type="HuggingFaceTokenizer", ckpt_format="torch_dist", bf16=dtype is torch.bfloat16,
        fp16=dtype is torch.float16, params_dtype=dtype, tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp,
        virtual_pipeline_model_parallel_size=None, expert_model_parallel_size=1, no_save_optim=True, no_save_rng=True)


def in_megatron_lm(rope: Rope) -> bool:
    """Can Megatron-LM's arguments say this rotary table? Of llama3 they know one shape, and no yarn."""
    shape = (rope.low_freq_factor, rope.high_freq_factor, rope.original_positions)
    return rope.kind in ("default", "linear") or (rope.kind == "llama3" and shape == (1.0, 4.0, 8192))


def _rope_scaling(rope: Rope) -> dict[str, Any]:
    llama3 = rope.kind == "llama3" and in_megatron_lm(rope)
    return {"use_rope_scaling": llama3, "rope_scaling_factor": rope.factor if llama3 else 1.0,
            "rotary_seq_len_interpolation_factor": rope.factor if rope.kind == "linear" else None}


def check_args(state: Path, arch: Architecture, companions: Path) -> None:
    """Compare the arguments in common.pt, if it has any (those of a run have none), with config.json.

    Raises:
        ModelError: names the argument and both values; or common.pt is missing or cannot be read.
    """
    common = _read(state / FILE)
    args = common.get("args") if isinstance(common, dict) else None
    said = dict(vars(args)) if isinstance(args, Namespace | SimpleNamespace) else {}
    if not said.get("group_query_attention"):
        said.pop("num_query_groups", None)  # Megatron-LM leaves it at 1 then, and has as many groups as heads
    for name, wanted in _described(arch).items():
        if said.get(name) is not None and said[name] != wanted:
            raise ModelError(f"{name}={said[name]} in {state / FILE}, {companions / 'config.json'} asks for {wanted}",
                             rule="checkpoint and config.json are of one model",
                             fix="give the Hugging Face directory of this model with --hf")


def _described(arch: Architecture) -> dict[str, Any]:
    """Arguments that say which model it is."""
    return {"num_layers": arch.layers, "hidden_size": arch.hidden, "ffn_hidden_size": arch.ffn,
            "num_attention_heads": arch.heads, "num_query_groups": arch.groups, "kv_channels": arch.head_dim,
            "rotary_base": int(arch.rope.base), "add_qkv_bias": arch.qkv_bias, "qk_layernorm": arch.qk_norm,
            "untie_embeddings_and_output_weights": not arch.tied}


def _read(path: Path) -> Any:
    try:
        return _load(path)
    except FileNotFoundError:
        raise ModelError(f"{path} does not exist", rule="a distributed checkpoint has one",
                         fix="copy the checkpoint again") from None
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {str(error).partition(chr(10))[0][:200]}",
                         rule="tensors and plain values, no other code", fix="copy the checkpoint again") from None


def _load(path: Path) -> Any:
    """No class is made but those that Megatron-LM's arguments consist of."""
    try:
        # the context takes away at its end what it was given, also what megatron-core had registered before
        known = torch.serialization.get_safe_globals()
        with torch.serialization.safe_globals([kind for kind in (Namespace, SimpleNamespace) if kind not in known]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # enums of megatron-core: it names them itself when it is imported
        from siri_megatron.learner import mcore  # noqa: F401
        return torch.load(path, map_location="cpu", weights_only=True)
