"""Everything in which megatron-core 0.16 and 0.19 differ for the learner, in this one module.

| what | 0.16.1 | 0.19.2 | here |
|---|---|---|---|
| importing it | without triton | a part for MoE imports triton, which torch+cpu lacks | `before_import` |
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from types import ModuleType

PAGED_STASH = "megatron.core.transformer.moe.ops.paged_stash"


def before_import() -> None:
    """Call before the first import of megatron.core.

    0.19 imports triton without a guard, for kernels of a mixture of experts that dense models never run. Where there is
    no triton, an empty module takes the place of that one file.
    """
    if find_spec("triton") is None and PAGED_STASH not in sys.modules:
        kernels = ModuleType(PAGED_STASH)
        vars(kernels).update(GLOBAL_BLOCK_SIZE=1024, paged_stash_copy_kernel=None, paged_stash_pop_kernel=None)
        sys.modules[PAGED_STASH] = kernels
