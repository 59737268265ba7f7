"""Builds models with the te spec on Transformer Engine's sources, and writes down what they are (for test_te_contract).

    python te_report.py DIRECTORY    reads DIRECTORY/<kind>/, writes DIRECTORY/report.json
"""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path
from typing import Any

from played_gpu import import_transformer_engine, played_gpu

engine = import_transformer_engine()

import torch  # noqa: E402
from large_models import CASES, CONTEXT, pretended_rank  # noqa: E402

from siri_megatron.checkpoint.megatron_state import stored_weights  # noqa: E402
from siri_megatron.config import LearnerConfig, ModelConfig  # noqa: E402
from siri_megatron.learner.architecture import Architecture, read_config  # noqa: E402
from siri_megatron.learner.model import build_model, chosen_spec, transformer_config  # noqa: E402
from siri_megatron.weights.load import load_hf  # noqa: E402

LAYOUT = LearnerConfig(tp=2, pp=2, sequence_parallel=True)


def built(arch: Architecture, layout: LearnerConfig, **model: Any) -> list[Any]:
    """The chunks of the rank that is played, as the learner builds them."""
    settings = ModelConfig(dtype="bfloat16", **model)
    config, spec = transformer_config(arch, layout, settings), chosen_spec(settings)
    return build_model(arch, config, spec, context=CONTEXT)


def described(chunk: Any) -> dict[str, Any]:
    """name -> shape, dtype, dimension of the cut, whether sequence parallelism makes its gradient partial"""
    return {name: {"shape": list(value.shape), "dtype": str(value.dtype),
                   "cut": value.partition_dim if getattr(value, "tensor_model_parallel", False) else None,
                   "partial": getattr(value, "sequence_parallel", None)}
            for name, value in chunk.named_parameters()}


def stored(chunk: Any) -> dict[str, list[int]]:
    """A checkpoint's entries: key -> shape of this rank's shard."""
    return {entry.key: list(entry.data.shape) for entry in stored_weights(chunk).values()}


def small(directory: Path, kind: str) -> list[dict[str, Any]]:
    """Every rank of a small model with its real weights, in CPU memory."""
    arch, ranks = Architecture.of(read_config(directory / kind)), []
    for rank in range(LAYOUT.world_size):
        with played_gpu("cpu"), pretended_rank(LAYOUT, rank):
            chunk = built(arch, LAYOUT, path=directory / kind)[0]
            load_hf([chunk], arch, directory / kind)
            torch.save({name: value.detach() for name, value in chunk.named_parameters()},
                       directory / kind / f"rank{rank}.pt")
            local = built(arch, LAYOUT, path=directory / kind, spec="local")[0]
            ranks.append({"parameters": described(chunk), "stored": stored(chunk), "local": stored(local)})
    return ranks


def large(name: str) -> list[dict[str, Any]]:
    """One rank of each stage of a large model, without memory."""
    case, ranks = CASES[name], []
    for rank in range(0, case.layout.world_size, case.layout.tp):
        with played_gpu("meta"), pretended_rank(case.layout, rank):
            arch = Architecture.of(case.config)
            chunk = built(arch, case.layout, path=Path("none"))[0]
            ranks.append({"parameters": described(chunk)})
    return ranks


def attention() -> dict[str, list[str]]:
    """What megatron-core hands from PackedSeqParams to Transformer Engine's attention, and what that takes."""
    case = CASES["7b-tp4-pp4"]
    with played_gpu("meta"), pretended_rank(case.layout, 0):
        chunk = built(Architecture.of(case.config), case.layout, path=Path("none"))[0]
    kept = chunk.decoder.layers[0].self_attention.core_attention.kept_packed_seq_params
    return {"handed": sorted(kept - {"cp_group", "local_cp_size"}),  # its forward takes these two out first
            "taken": sorted(inspect.signature(engine.DotProductAttention.forward).parameters)}


def context_parallel() -> dict[str, Any]:
    """What Transformer Engine's attention was told of the context-parallel ranks."""
    layout = LearnerConfig(tp=4, pp=4, cp=2)
    with played_gpu("meta"), pretended_rank(layout, 4):
        chunk = built(Architecture.of(CASES["7b-tp4-pp4"].config), layout, path=Path("none"))[0]
        attention = chunk.decoder.layers[0].self_attention.core_attention
        return {"size": attention.cp_group.size(), "ranks": list(attention.cp_global_ranks),
                "comm_type": attention.cp_comm_type}


def rotary_of_a_part(rotary: Any, heads: int, head_dim: int, rank: int) -> float:
    """Largest error of Transformer Engine's rotary over a context-parallel rank's part of a packed row."""
    import numpy as np
    from megatron.core.extensions.transformer_engine import apply_rotary_pos_emb
    from megatron.core.models.common.embeddings.rope_utils import _apply_rotary_pos_emb_bshd

    from siri_megatron.batching.context import zigzag
    from siri_megatron.learner.attention import PackedRow, segments
    from siri_megatron.learner.batch import _packing
    from siri_megatron.learner.context import ContextRanks
    lengths, width, context, cpu = np.array([5, 3, 9]), 32, ContextRanks(rank, 2), torch.device("cpu")
    part = torch.randn(width // 2, heads, head_dim, generator=torch.Generator().manual_seed(0))
    packing, row = _packing(lengths, width, "te", cpu, context), PackedRow.of(lengths, width, cpu, context)
    wanted = _apply_rotary_pos_emb_bshd(part[:, None], rotary(rotary.get_rotary_seq_len(None, None, None, None, row)))
    angles = rotary(rotary.get_rotary_seq_len(None, None, None, None, packing), packed_seq=True)
    found = apply_rotary_pos_emb(part, angles, tensor_format="thd", fused=False,
                                 cu_seqlens=packing.cu_seqlens_q_padded, cp_size=2, cp_rank=rank)
    rooms = segments(lengths, width, 2)
    tokens = [begin + np.arange(length) for begin, length in zip(np.cumsum(rooms) - rooms, lengths, strict=False)]
    real = torch.from_numpy(np.isin(zigzag(rooms, 2)[rank], np.concatenate(tokens)))
    return (found - wanted[:, 0])[real].abs().max().item()


def rotary_error() -> dict[str, float]:
    """Transformer Engine's rotary (its plain Python) over a packed row against the local spec's, as largest errors."""
    import numpy as np
    from megatron.core.extensions.transformer_engine import apply_rotary_pos_emb
    from megatron.core.models.common.embeddings.rope_utils import _apply_rotary_pos_emb_bshd

    from siri_megatron.learner.attention import PackedRow
    from siri_megatron.learner.batch import _packing
    from siri_megatron.learner.rotary import SegmentRotary
    case = CASES["70b-tp8-pp8-dp2"]
    arch = Architecture.of(case.config)
    config = transformer_config(arch, case.layout, ModelConfig(path=Path("none")))
    rotary = SegmentRotary(arch.rope, arch.head_dim, config)
    lengths, width = np.array([5, 3, 9]), 24
    row = torch.randn(width, 2, arch.head_dim, generator=torch.Generator().manual_seed(0))
    packing = _packing(lengths, width, "te", torch.device("cpu"))
    length = rotary.get_rotary_seq_len(None, None, None, None, packing)
    local = rotary.get_rotary_seq_len(None, None, None, None, PackedRow.of(lengths, width, torch.device("cpu")))
    wanted = _apply_rotary_pos_emb_bshd(row[:, None], rotary(local))[:, 0]
    found = apply_rotary_pos_emb(row, rotary(length), tensor_format="thd", fused=False, cu_seqlens=packing.cu_seqlens_q)
    whole = torch.tensor([0, width], dtype=torch.int32)
    wrong = apply_rotary_pos_emb(row, rotary(width), tensor_format="thd", fused=False, cu_seqlens=whole)
    real = slice(0, int(lengths.sum()))
    parts = [rotary_of_a_part(rotary, 2, arch.head_dim, rank) for rank in range(2)]
    return {"parts": max(parts), "right": (found - wanted)[real].abs().max().item(),
            "one_segment": (wrong - wanted)[real].abs().max().item()}


def report_of(directory: Path) -> dict[str, Any]:
    import megatron.core
    from megatron.core.models.common.embeddings import rope_utils
    with played_gpu("cpu"):
        rotary = rotary_error()
    return {
        "megatron": megatron.core.__version__,
        "small": {kind: small(directory, kind) for kind in ("qwen2", "qwen3_tied", "llama")},
        "large": {name: large(name) for name in ("7b-tp4-pp4",)},
        "attention": attention(),
        "context_parallel": context_parallel(),
        "fused_rotary": rope_utils.fused_apply_rotary_pos_emb_thd is not None,
        "rotary": rotary,
    }


if __name__ == "__main__":
    with torch.no_grad():
        (Path(sys.argv[1]) / "report.json").write_text(json.dumps(report_of(Path(sys.argv[1]))))
