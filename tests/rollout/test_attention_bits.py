"""vLLM's attention on CPU, asked directly: one sequence alone and in company. Why reproducible runs do not split keys.

With several threads an engine cuts the keys of a sequence between them, and where depends on the other sequences of
the batch: the sum then has another order. A run that was killed and resumed has other batches, and ended with other
weights.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

TRIALS = 30
THREADED = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}

# Decoding steps of a batch, each sequence with one query: what the first one gets alone, and among others.
ATTEND = """
import json, random, sys
import torch
from vllm.platforms import current_platform
current_platform.import_kernels()
from vllm import _custom_ops as ops

HEADS, GROUPS, WIDTH, BLOCK, LONGEST = 4, 2, 32, 128, 150
split, trials = json.loads(sys.argv[1]), int(sys.argv[2])
torch.manual_seed(0)
query = torch.randn(16, HEADS, WIDTH)
keys, values = torch.randn(16, LONGEST, GROUPS, WIDTH), torch.randn(16, LONGEST, GROUPS, WIDTH)

def attend(lengths):
    count = len(lengths)
    table = torch.arange(2 * count, dtype=torch.int32).view(count, 2)
    cache = torch.zeros(2 * count, GROUPS, 2 * BLOCK, WIDTH).chunk(2, dim=2)
    slots = torch.cat([torch.arange(length) + 2 * row * BLOCK for row, length in enumerate(lengths)])
    held = [torch.cat([one[row, :length] for row, length in enumerate(lengths)]) for one in (keys, values)]
    ops.cpu_attn_reshape_and_cache(*held, *cache, slots, "vec")
    starts, lengths = torch.arange(count + 1, dtype=torch.int32), torch.tensor(lengths, dtype=torch.int32)
    plan = ops.cpu_attn_get_scheduler_metadata(count, HEADS, GROUPS, WIDTH, lengths, torch.float32, starts, True, -1,
                                               "vec", split)
    out = torch.zeros(count, HEADS, WIDTH)
    ops.cpu_attention_with_kv_cache(query[:count], *cache, out, starts, lengths, WIDTH ** -0.5, True, None, -1, table,
                                    0.0, plan, None)
    return out

def by_hand(length):
    grouped = query[0].view(GROUPS, HEADS // GROUPS, WIDTH)
    scores = (grouped @ keys[0, :length].permute(1, 2, 0) * WIDTH ** -0.5).softmax(-1)
    return (scores @ values[0, :length].transpose(0, 1)).view(HEADS, WIDTH)

rng, differ, worst = random.Random(1), 0, 0.0
for _ in range(trials):
    lengths = [rng.randint(20, LONGEST) for _ in range(rng.randint(2, 16))]
    alone = attend(lengths[:1])[0]
    differ += not torch.equal(alone, attend(lengths)[0])
    worst = max(worst, (alone - by_hand(lengths[0])).abs().max().item())
print(json.dumps([torch.get_num_threads(), differ, worst]))
"""


@pytest.mark.parametrize("split", [False, True])
def test_a_sequence_alone_and_in_company(split: bool) -> None:
    """True is the negative control, and vLLM's default (`VLLM_CPU_ATTN_SPLIT_KV`)."""
    done = subprocess.run([sys.executable, "-c", ATTEND, json.dumps(split), str(TRIALS)], capture_output=True,
                          text=True, timeout=600, env=os.environ | THREADED)
    assert done.returncode == 0, done.stderr
    threads, differ, worst = json.loads(done.stdout.splitlines()[-1])
    assert threads == 2
    assert (differ > 0) == split
    assert worst < 1e-5, "attention, written out"
