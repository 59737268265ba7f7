"""Conversion streams: the memory that it takes does not grow with the model. Measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from siri_megatron.learner.architecture import Architecture
from siri_megatron.weights.names import tensors

ROOT = Path(__file__).resolve().parents[2]
CONFIG = {"model_type": "llama", "hidden_act": "silu", "hidden_size": 512, "num_hidden_layers": 32,
          "num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 1536, "vocab_size": 8000,
          "max_position_embeddings": 64, "tie_word_embeddings": False}
# VmHWM is set back first, so the peak of the imports does not count. Prints the bytes above what was resident before.
MEASURE = """
import json, sys
from pathlib import Path
from safetensors.torch import load_file
from siri_megatron.convert.convert import Options, hf_to_megatron, megatron_to_hf, reshard
def status(name):
    line = next(line for line in open("/proc/self/status") if line.startswith(name))
    return int(line.split()[1]) * 1024
def measured(convert, *paths, **given):
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    convert(*map(Path, paths), **given, options=Options(), progress=lambda what, total: lambda done: None)
    return status("VmHWM") - before
def whole(path, **_):
    kept = {name: tensor.clone() for name, tensor in load_file(path / "model.safetensors").items()}
place = sys.argv[1]
print(json.dumps({
    "hf-to-megatron": measured(hf_to_megatron, f"{place}/hf", f"{place}/one", tp=1, pp=1),
    "hf-to-megatron, sharded": measured(hf_to_megatron, f"{place}/hf", f"{place}/four", tp=2, pp=2),
    "megatron-to-hf": measured(megatron_to_hf, f"{place}/four", f"{place}/again", hf=None),
    "reshard": measured(reshard, f"{place}/four", f"{place}/other", tp=4, pp=1, hf=None),
    "control": measured(whole, f"{place}/hf")}))
"""


@pytest.fixture(scope="module")
def peaks(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, int]]:
    """Bytes of the model, and the peak of each conversion above its beginning."""
    place = tmp_path_factory.mktemp("memory")
    parts = tensors(Architecture.of(CONFIG))
    state = {part.name: torch.zeros(part.shape) for part in parts}
    (place / "hf").mkdir()
    (place / "hf" / "config.json").write_text(json.dumps(CONFIG))
    save_file(state, place / "hf" / "model.safetensors", metadata={"format": "pt"})
    size = sum(tensor.nbytes for tensor in state.values())
    done = subprocess.run([sys.executable, "-c", MEASURE, str(place)], capture_output=True, text=True, timeout=300,
                          cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return size, json.loads(done.stdout)


@pytest.mark.parametrize("conversion", ["hf-to-megatron", "hf-to-megatron, sharded", "megatron-to-hf", "reshard"])
def test_streamed(peaks: tuple[int, dict[str, int]], conversion: str) -> None:
    """A layer has 3 % of the weights and the embedding 4 %; two of each may be held, and what mappings bring along."""
    size, found = peaks
    print(f"{conversion}: {found[conversion] / 1e6:.0f} MB of {size / 1e6:.0f} MB")
    assert size > 350e6
    assert found[conversion] < 0.3 * size


def test_a_whole_model_in_memory_would_be_seen(peaks: tuple[int, dict[str, int]]) -> None:
    size, found = peaks
    assert found["control"] > size
