"""What the launch section refuses: both numbers, and what to do."""

from __future__ import annotations

from typing import Any

import pytest

from siri_megatron.config import load, signal_lead_s, validate
from siri_megatron.config.launch import variants
from siri_megatron.errors import ConfigError
from siri_megatron.launch.spec import PACKAGE_ROOT


def raw(launch: dict[str, Any], **sections: dict[str, Any]) -> dict[str, Any]:
    return {"name": "r", "model": {"path": "m"}, "optimizer": {"lr": 1e-4}, "push": {"backend": "gloo"},
            "learner": {"tp": 2, "dp": 2}, "launch": launch,
            "budget": {"l_min": 8, "l_max": 16, "cycle_steps": 4, "cycles": 2}} | sections


@pytest.mark.parametrize(("launch", "sections", "said"), [
    ({"nodes": 3}, {}, ("launch.nodes=3", "learner.nodes=1", "engines.nodes=1", "set launch.nodes=2")),
    ({"nodes": 2, "placement": "turns"}, {}, ("turns", "launch.nodes=2", "make the three equal")),
    ({"nodes": 2}, {"push": {"backend": "shm"}}, ("push.backend=shm", "launch.nodes=2", "gloo")),
    ({"placement": "turns"}, {"push": {"backend": "nccl"}}, ("push.backend=nccl", "turns", "shm")),
    ({"nodes": 2}, {"engines": {"urls": ["http://10.0.0.9:80"], "key_file": "k", "count": 1}},
     ("nodes=1", "set launch.learner.nodes=2")),
    ({"learner": {"tasks_per_node": 3}}, {}, ("1 x 3 = 3", "= 4", "leave tasks_per_node out")),
    ({"nodes": 4, "learner": {"nodes": 3}}, {}, ("= 4", "nodes=3", "divides 4")),
    ({"learner": {"gpus_per_node": 4}}, {}, ("gpus_per_node=4", "gpus_per_node=0", "give both, or neither")),
    ({"learner": {"gpus_per_node": 3}, "engines": {"gpus_per_node": 2}}, {}, ("=3", "4 learners a node", "set 4")),
    ({"learner": {"gpus_per_node": 4}, "engines": {"gpus_per_node": 3}}, {}, ("=3", "2 engines a node", "set 2")),
    ({"slurm": {"signal_lead_s": 300}}, {}, ("signal_lead_s=300", "timeout_s=600", "620")),
    ({"slurm": {"time_limit": "0:10:00"}}, {}, ("0:10:00 (600 s)", "740 s", "raise time_limit")),
    ({"hang_timeout_s": 100}, {}, ("hang_timeout_s=100", "is no hang", "raise it")),
    ({"slurm": {"mounts": ["/a:/b"]}}, {}, ("/a:/b", "container_image")),
    ({"slurm": {"container_image": "x.sqsh"}}, {}, ("x.sqsh", "launch.python")),
    ({"slurm": {"directives": ["reservation=x"]}}, {}, ("reservation=x", "--reservation=NAME")),
    ({"slurm": {"sweep": {"seed": []}}}, {}, ("seed without values",)),
    ({"slurm": {"sweep": {"seed": [1, 2, 1]}}}, {}, ("two runs called ...-seed1", "each value once")),
    ({"slurm": {"sweep": {"data.train": ["a/b", "a_b"]}}}, {}, ("two runs called ...-traina_b",)),
    ({"slurm": {"sweep": {"name": ["a", "b"]}}}, {}, ("sweep has name", "leave name out")),
    ({"slurm": {"sweep": {"launch.nodes": [1, 2]}}}, {}, ("sweep has launch.nodes", "one script")),
    ({"env": {"A B": "1"}}, {}, ("A B",)),
])
def test_refused(launch: dict[str, Any], sections: dict[str, Any], said: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as refused:
        validate(raw(launch, **sections), "test")
    assert all(word in refused.value.what for word in said), refused.value.what


@pytest.mark.parametrize("launch", [
    {}, {"nodes": 2}, {"nodes": 2, "learner": {"nodes": 2}, "engines": {"nodes": 2}},
    {"nodes": 3, "learner": {"nodes": 2, "tasks_per_node": 2}}, {"slurm": {"time_limit": "0:13:00"}},
    {"learner": {"gpus_per_node": 4}, "engines": {"gpus_per_node": 2}}, {"hang_timeout_s": 9000},
])
def test_accepted(launch: dict[str, Any]) -> None:
    validate(raw(launch), "test")


def test_yaml_may_take_a_time_limit_for_a_number() -> None:
    config = load(PACKAGE_ROOT / "configs" / "tiny.yaml", ["launch.slurm.time_limit=4:30:00"])
    assert config.launch.slurm.time_limit_s == 4.5 * 3600
    assert signal_lead_s(config) == 740


def test_a_sweep_names_every_combination() -> None:
    slurm = validate(raw({"slurm": {"sweep": {"seed": [1, 2], "budget.schedule": ["cosine"]}}}), "test").launch.slurm
    assert variants(slurm, "r") == [("name=r-seed1-schedulecosine", "seed=1", "budget.schedule=cosine"),
                                    ("name=r-seed2-schedulecosine", "seed=2", "budget.schedule=cosine")]
