"""Servers of a run listen on loopback or a private network only."""

from __future__ import annotations

from pathlib import Path

import pytest

from siri_megatron.config import load
from siri_megatron.config.addresses import is_local, private_host, server_url
from siri_megatron.errors import ConfigError

TINY = Path(__file__).resolve().parents[2] / "configs" / "tiny.yaml"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.1.1", "localhost", "10.1.2.3", "172.16.0.9", "192.168.1.7",
                                  "100.64.0.2", "169.254.3.4", "node-17", "node17.cluster.local"])
def test_private(host: str) -> None:
    assert load(TINY, [f"engines.host={host}"]).engines.host == host


@pytest.mark.parametrize(("host", "why"), [
    ("0.0.0.0", "binds every interface"), ("8.8.8.8", "not a private address"), ("224.0.0.1", "not a private address"),
    ("255.255.255.255", "not a private address"), ("'::'", "no IPv4 address"), ("'::1'", "no IPv4 address"),
    ("''", "no IPv4 address"), ("'*'", "no IPv4 address"), ("10.0.0.300", "no IPv4 address"), ("'0'", "no IPv4"),
    ("a_b", "no host name"), ("'10.0.0.1:80'", "no IPv4 address"), ("'http://a'", "no IPv4 address")])
def test_refused_with_the_fix(host: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        load(TINY, [f"engines.host={host}"])
    assert "127.0.0.1 for one machine" in str(caught.value)


@pytest.mark.parametrize("text", ["--host=0.0.0.0", "--hos", "--uds", "--port", "--served_model_name=x", "--grpc-p"])
def test_no_argument_passes_by_the_lock(text: str) -> None:
    with pytest.raises(ConfigError, match="leave it out"):
        load(TINY, [f"engines.extra_args=['{text}']"])


def test_local() -> None:
    assert [is_local(host) for host in ("127.0.0.1", "127.3.2.1", "localhost", "10.0.0.1", "node-1")] \
        == [True, True, True, False, False]


def test_urls() -> None:
    assert server_url("http://10.0.0.1:8000/") == "http://10.0.0.1:8000"
    assert server_url("http://node-1:80") == "http://node-1:80"
    for wrong in ("10.0.0.1:8000", "https://10.0.0.1:80", "http://10.0.0.1", "http://8.8.8.8:80", "http://a:1/x", "",
                  "http://k@a:1", "http://a:1?x", "http://a:0"):
        with pytest.raises(ValueError, match=r"http|private"):
            server_url(wrong)


def test_a_name_is_not_looked_up() -> None:
    """A config is read on a login node, where a compute node's name may mean nothing."""
    assert private_host("no-such-host.invalid") == "no-such-host.invalid"
