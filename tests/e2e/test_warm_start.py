"""`siri sft`: a shortened rebuild of the shipped warm start learns, on two pipeline stages."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from real_run import REPO, siri
from safetensors.torch import load_file

from siri_megatron.observe import jsonl

STEPS = 60


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory):
    """The first stage of the shipped recipe, cut to 60 steps."""
    place = tmp_path_factory.mktemp("sft")
    recipe = yaml.safe_load((REPO / "configs" / "tiny-warmstart.yaml").read_text())
    stage = recipe["stages"][0] | {"steps": STEPS, "tokens_per_step": 2048}
    siri("sft", str(REPO / "configs" / "tiny-warmstart.yaml"), "name=rebuilt", f"runs_dir={place}",
         f"output={place / 'model'}", f"stages={json.dumps([stage])}", "learner.pp=2")
    return place


def test_a_shortened_rebuild_learns(rebuilt):
    losses = [record["loss"] for record in jsonl.read(rebuilt / "rebuilt" / "metrics.jsonl")]
    assert len(losses) == STEPS
    assert sum(losses[-5:]) / 5 < 0.6 * losses[0]


def test_the_result_is_a_plain_model_directory(rebuilt):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(rebuilt / "model", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(rebuilt / "model")
    shipped = load_file(REPO / "configs" / "models" / "tiny-digits" / "model.safetensors")
    built = load_file(rebuilt / "model" / "model.safetensors")
    assert {name: tensor.shape for name, tensor in built.items()} == {
        name: tensor.shape for name, tensor in shipped.items()}
    assert model.config.vocab_size == len(tokenizer)
