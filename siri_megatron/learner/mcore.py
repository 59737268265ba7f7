"""Every name of megatron-core that the learner uses, imported in this one place.

So the API that a change of megatron-core may break is one list (0.16 and 0.19 have all of it), and the imports happen
under `eager_imports`, without which each learner would load torch's compiler for fusions it never runs on CPU.
"""

from __future__ import annotations

import warnings

from siri_megatron.learner import versions
from siri_megatron.learner.runtime import eager_imports

versions.before_import()
with warnings.catch_warnings(), eager_imports():
    warnings.filterwarnings("ignore", message=".*(Apex|Transformer Engine).*")  # a CPU machine has neither
    from megatron.core import parallel_state
    from megatron.core.distributed import (
        DistributedDataParallel,
        DistributedDataParallelConfig,
        finalize_model_grads,
    )
    from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
    from megatron.core.models.gpt.gpt_layer_specs import (
        get_gpt_layer_local_spec,
        get_gpt_layer_with_transformer_engine_spec,
    )
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.optimizer import (
        Adam,
        MegatronOptimizer,
        OptimizerConfig,
        get_megatron_optimizer,
        get_standard_config_overrides,
    )
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
    from megatron.core.packed_seq_params import PackedSeqParams
    from megatron.core.pipeline_parallel import get_forward_backward_func
    from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
    from megatron.core.pipeline_parallel.p2p_communication import _p2p_ops as p2p_ops
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.tensor_parallel import gather_from_sequence_parallel_region, model_parallel_cuda_manual_seed
    from megatron.core.tensor_parallel import random as megatron_random
    from megatron.core.transformer.module import MegatronModule
    from megatron.core.transformer.spec_utils import ModuleSpec
    from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
    from megatron.core.transformer.transformer_config import TransformerConfig

__all__ = [
    "Adam", "DistributedDataParallel", "DistributedDataParallelConfig", "DistributedOptimizer", "GPTModel",
    "MegatronModule", "MegatronOptimizer", "ModuleSpec", "OptimizerConfig", "P2PCommunicator", "PackedSeqParams",
    "ProcessGroupCollection", "RotaryEmbedding", "TransformerBlockSubmodules", "TransformerConfig",
    "finalize_model_grads", "gather_from_sequence_parallel_region", "get_forward_backward_func",
    "get_gpt_layer_local_spec", "get_gpt_layer_with_transformer_engine_spec", "get_megatron_optimizer",
    "get_standard_config_overrides", "megatron_random", "model_parallel_cuda_manual_seed", "p2p_ops",
    "parallel_state",
]
