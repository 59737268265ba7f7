"""The pre-check over several nodes: what each refusal names."""

from __future__ import annotations

import dataclasses
import socket
from pathlib import Path
from typing import Any

import pytest
from launch_nodes import config_of

from siri_megatron.config import RunConfig, load
from siri_megatron.errors import ConfigError
from siri_megatron.files import write_json
from siri_megatron.launch import node_facts
from siri_megatron.launch.interface import address_of, chosen_address, interface_of
from siri_megatron.launch.node_facts import NodeFacts, check_nodes, hold_ports, look
from siri_megatron.launch.spec import PACKAGE_ROOT
from siri_megatron.paths import RunDir

GOOD = NodeFacts(node=1, name="n2", address="10.0.0.2", interface="ib0", cores=(0, 1), device="cuda",
                 gpus=tuple("01234567"), ports=(8000,), python="python", versions={"torch": "2.13.0", "vllm": "0.32.0"},
                 nonce="seen", model_seen=True)
HEAD = dataclasses.replace(GOOD, node=0, name="n1", address="10.0.0.1")


def paper() -> RunConfig:
    return load(PACKAGE_ROOT / "configs" / "r1-distill-7b.yaml")


def test_equal_nodes_are_accepted_and_read_back() -> None:
    check_nodes([HEAD, GOOD], paper(), "seen")
    assert NodeFacts.from_json(GOOD.to_json()) == GOOD


@pytest.mark.parametrize(("wrong", "said"), [
    ({"nonce": "other"}, ("does not see the run directory", "share")),
    ({"model_seen": False}, ("model.path=configs/models/deepseek-r1-distill-qwen-7b",)),
    ({"versions": {"torch": "2.13.0", "vllm": "0.33.0"}}, ("vllm 0.33.0", "vllm 0.32.0", "node 0 (n1)")),
    ({"versions": {"torch": "2.13.0"}}, ("vllm missing", "vllm 0.32.0")),
    ({"device": "cpu"}, ("on cpu", "on cuda")),
    ({"gpus": ("0", "1")}, ("2 GPUs", "needs 8 a node")),
    ({"address": "8.8.8.8"}, ("8.8.8.8", "launch.interface")),
])
def test_refused(wrong: dict[str, Any], said: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as refused:
        check_nodes([HEAD, dataclasses.replace(GOOD, **wrong)], paper(), "seen")
    assert all(word in refused.value.render() for word in ("node 1 (n2)", *said)), refused.value.render()


def test_gpus_that_nobody_shares_out_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="gpus_per_node=0"):
        check_nodes([HEAD, GOOD], config_of(tmp_path / "run"), "seen")


def test_a_node_reads_the_heads_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_facts, "VISIBLE_S", 0.3)
    config = config_of(tmp_path / "run")
    write_json(RunDir(config.run_dir).probe, {"nonce": "now"})
    for nonce in ("now", "of another directory"):
        seen = look(config, 1, address="127.0.0.1", interface="lo", ports=(), nonce=nonce)
        assert (seen.nonce, seen.model_seen) == ("now", True)


def test_a_node_holds_a_port_for_each_of_its_engines(tmp_path: Path) -> None:
    config = config_of(tmp_path / "run")  # two engines, on node 1
    with hold_ports(config, 0, "127.0.0.1") as none, hold_ports(config, 1, "127.0.0.1") as two:
        assert (len(none.ports), len(two.ports)) == (0, 2)


def test_interfaces_are_found_by_address_and_name() -> None:
    loopback = interface_of("127.0.0.1")
    assert address_of(loopback) == chosen_address(loopback, "10.0.0.1") == "127.0.0.1"
    assert chosen_address("", "10.0.0.1") == "10.0.0.1"
    assert interface_of("203.0.113.9") == ""
    with pytest.raises(ConfigError, match=f"ib77 has no IPv4 address on {socket.gethostname()}"):
        chosen_address("ib77", "10.0.0.1")
