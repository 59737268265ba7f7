"""Engines that somebody else started: refused before the run if they do not suit it, watched, never ended."""

from __future__ import annotations

import http.server
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from launch_processes import Marked, wait_for
from own_ports import own_ports
from test_fleet_watch import FleetRun

from siri_megatron.cli import main, parse
from siri_megatron.config import RunConfig, load
from siri_megatron.errors import ConfigError
from siri_megatron.launch.cluster import at_address, plan_nodes
from siri_megatron.launch.engine_command import launch_of, shared_key
from siri_megatron.launch.given import check_given, check_reach
from siri_megatron.launch.key import make_key
from siri_megatron.launch.node_facts import NodeFacts
from siri_megatron.launch.placement import engines_on, gpus_per_node
from siri_megatron.launch.preflight import this_machine
from siri_megatron.rollout.engine_args import engine_launch
from siri_megatron.rollout.fleet import confirm

TINY = Path(__file__).resolve().parents[2] / "configs" / "tiny.yaml"
MODEL = TINY.parent / "models" / "tiny-digits"
KEY = "k" * 32


class Answers(http.server.BaseHTTPRequestHandler):
    """An engine's answers, by route."""

    server: Any

    def do_GET(self) -> None:
        if self.server.guarded and self.headers.get("Authorization") != f"Bearer {KEY}":
            return self._say(401, {})
        found = self.server.answers.get(self.path)
        return self._say(404, "no") if found is None else self._say(200, found)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.do_GET()

    def _say(self, status: int, body: object) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def engine() -> Iterator[Any]:
    """A server that answers as an engine that suits the run."""
    server: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.guarded, server.url = True, f"http://127.0.0.1:{server.server_port}"
    server.answers = {
        "/version": {"version": "0.32.0+cpu"}, "/weight_info": {"weight_version": "default"},
        "/v1/models": {"data": [{"id": "policy", "root": str(MODEL), "max_model_len": 160}]},
        "/get_world_size": {"world_size": 4}, "/init_weight_transfer_engine": {"message": "done"}}
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join(10)
    server.server_close()


def given(tmp_path: Path, *urls: str, key: str = KEY, **engines: Any) -> RunConfig:
    (tmp_path / "key").write_text(key + "\n")
    others = [f"engines.{name}={value}" for name, value in engines.items()]
    return load(TINY, [f"engines.urls={json.dumps(urls)}", f"engines.count={len(urls)}",
                       f"engines.key_file={tmp_path / 'key'}", f"model.path={MODEL}", *others])


def refusal(config: RunConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        check_given(config, trained=True)
    assert caught.value.rule
    assert caught.value.fix
    return caught.value.what


def test_suits(engine: Any, tmp_path: Path) -> None:
    """What is learnt: how many workers take weights."""
    assert check_given(given(tmp_path, engine.url), trained=True) == (4,)


@pytest.mark.parametrize(("route", "answer", "said"), [
    ("/version", {"version": "0.20.1"}, "is vLLM 0.20.1"),
    ("/v1/models", {"data": [{"id": "other", "root": str(MODEL), "max_model_len": 160}]}, "serves ['other']"),
    ("/v1/models", {"data": [{"id": "policy", "root": "/elsewhere", "max_model_len": 160}]}, "started on /elsewhere"),
    ("/v1/models", {"data": [{"id": "policy", "root": str(MODEL), "max_model_len": 96}]}, "max_model_len=96"),
    ("/weight_info", None, "has no route /weight_info"),
    ("/init_weight_transfer_engine", None, "answers /init_weight_transfer_engine with 404"),
    ("/get_world_size", None, "answers /get_world_size with 404")])
def test_does_not_suit(engine: Any, tmp_path: Path, route: str, answer: Any, said: str) -> None:
    engine.answers[route] = answer
    assert said in refusal(given(tmp_path, engine.url))


def test_an_evaluation_wants_the_starting_weights(engine: Any, tmp_path: Path) -> None:
    """Nobody pushes: an engine that a run has trained would be evaluated under the name of model.path."""
    config = given(tmp_path, engine.url)
    assert check_given(config, trained=False) == (4,)
    engine.answers["/weight_info"] = {"weight_version": "12"}
    assert check_given(config, trained=True) == (4,)
    with pytest.raises(ConfigError, match="weights called '12', of an earlier run"):
        check_given(config, trained=False)


def test_key(engine: Any, tmp_path: Path) -> None:
    assert "refuses the key" in refusal(given(tmp_path, engine.url, key="x" * 32))
    assert "is empty" in refusal(given(tmp_path, engine.url, key=""))
    config = given(tmp_path, engine.url)
    (tmp_path / "key").unlink()
    assert "is no file" in refusal(config)
    engine.guarded = False
    assert "answers /version without a key" in refusal(given(tmp_path, engine.url))


def test_nobody_there(engine: Any, tmp_path: Path) -> None:
    assert "no engine answers at http://127.0.0.1:1" in refusal(given(tmp_path, engine.url, "http://127.0.0.1:1"))


def test_reach(tmp_path: Path) -> None:
    """Shared memory ends at this machine; the engines' workers must find the learners."""
    far = given(tmp_path, "http://10.255.255.1:8000")
    assert "push.backend=shm" in refusal(far)
    assert "engines.host=127.0.0.1" in refusal(
        far.model_copy(update={"push": far.push.model_copy(update={"backend": "gloo"})}))


def test_on_several_nodes_engines_find_the_learners_at_the_head(tmp_path: Path) -> None:
    """Its address is known when the nodes have met: engines.host of the config is not asked."""
    far = given(tmp_path, "http://10.0.0.7:8000", "http://10.0.0.8:8000")
    gloo = far.model_copy(update={"push": far.push.model_copy(update={"backend": "gloo"})})
    two = gloo.model_copy(update={"launch": gloo.launch.model_copy(update={"nodes": 2})})
    check_reach(two, far.engines.urls[0])
    with pytest.raises(ConfigError, match=r"engines\.host=127\.0\.0\.1"):
        check_reach(gloo, far.engines.urls[0])


def test_given_have_no_seat(tmp_path: Path) -> None:
    """All nodes are the learners', and none holds a port or a GPU for an engine."""
    (tmp_path / "key").write_text(KEY)
    config = at_address(load(TINY, [
        "engines.urls=[http://10.0.0.7:8000,http://10.0.0.8:8000]", f"engines.key_file={tmp_path / 'key'}",
        f"model.path={MODEL}", "push.backend=gloo", "launch.nodes=2", "launch.learner={nodes: 2, gpus_per_node: 1}"]),
        "10.0.0.1")
    facts = [NodeFacts(node, f"n{node}", f"10.0.0.{node + 1}", "", (0, 1), "cuda", ("0",), (), "python", {}, "", True)
             for node in (0, 1)]
    plan = plan_nodes(config, "train", facts, given=(1, 4))
    engines, learners = plan.of("engine"), plan.of("main")
    assert [(one.url, one.tp, one.argv) for one in engines] == [("http://10.0.0.7:8000", 1, ()),
                                                                ("http://10.0.0.8:8000", 4, ())]
    assert [(one.node, one.env["CUDA_VISIBLE_DEVICES"]) for one in learners] == [(0, "0"), (1, "0")]
    assert [engines_on(config, node) for node in (0, 1)] == [[], []]
    assert gpus_per_node(config) == 1


@pytest.mark.parametrize(("overrides", "said"), [
    (["engines.urls=[http://a:1,http://a:1]", "engines.key_file=k"], "http://a:1 twice"),
    (["engines.urls=[http://a:1]", "engines.count=3", "engines.key_file=k"], "count=3 with 1 urls"),
    (["engines.urls=[http://a:1]", "engines.count=1"], "key_file=None"), (["engines.key_file=k"], "give both"),
    (["engines.urls=[http://a:1,http://b:1]", "engines.key_file=k", "engines.base_port=9000"], "leave base_port out"),
    (["engines.urls=[http://a:1,http://b:1]", "engines.key_file=k", "launch.nodes=2"],
     "set launch.learner.nodes=2"),
    (["engines.urls=[http://a:1,http://b:1]", "engines.key_file=k", "launch.nodes=2", "launch.learner.nodes=2",
      "launch.engines.nodes=2"], "launch.engines={'nodes': 2}"),
    (["engines.urls=[http://a:1,http://b:1]", "engines.key_file=k", "launch.placement=turns"], "placement=turns"),
    (["engines.urls=[ftp://a:1,http://b:1]", "engines.key_file=k"], "is not http://HOST:PORT")])
def test_refused_keys(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(TINY, overrides)
    assert said in str(caught.value)


def test_the_count_is_that_of_the_urls(tmp_path: Path) -> None:
    config = given(tmp_path, "http://127.0.0.1:1", "http://127.0.0.1:2/", "http://localhost:3")
    assert config.engines.count == 3
    assert config.engines.urls[1] == "http://127.0.0.1:2"


def test_one_server_under_two_names_is_refused(engine: Any, tmp_path: Path) -> None:
    said = refusal(given(tmp_path, engine.url, engine.url.replace("127.0.0.1", "localhost")))
    assert said.endswith(f"both 127.0.0.1 port {engine.server_port}")


@pytest.mark.parametrize(("content", "said"), [(b"", "is empty"), (b"a\nb\n", "more than one word"),
                                               (b"\xff\xfeabc", "more than one word"), (None, "is no file")])
def test_a_file_that_holds_no_key_is_refused(tmp_path: Path, content: bytes | None, said: str) -> None:
    config, path = given(tmp_path, "http://127.0.0.1:1"), tmp_path / "key"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    assert said in refusal(config)


def test_one_key_for_engines_that_start_at_once(tmp_path: Path) -> None:
    files = [tmp_path / "key"] * 8
    threads = [threading.Thread(target=shared_key, args=(path,)) for path in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    key = (tmp_path / "key").read_text()
    assert len(key) == 64
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert shared_key(tmp_path / "key").read_text() == key
    assert os.listdir(tmp_path) == ["key"]
    assert make_key(tmp_path / "run", tmp_path / "key") == key == (tmp_path / "run").read_text()


# --- watched


CHILDREN = str(Path(__file__).with_name("launch_children.py"))


def test_one_that_is_started_again_comes_back_without_weights(marked: Marked, tmp_path: Path) -> None:
    """Also at once, before anybody has missed it; and the end of the run is not theirs."""
    theirs = Marked()
    try:
        ports = own_ports(2)
        first = [theirs.start(sys.executable, CHILDREN, "engine", str(port)) for port in ports]
        run = FleetRun(marked, tmp_path, *(f"engine-{index}=given,{port}" for index, port in enumerate(ports)))
        assert [engine["pid"] for engine in run.fleet["engines"]] == [0, 0]
        first[1].kill()
        theirs.start(sys.executable, CHILDREN, "engine", str(ports[1]))
        run.until_states(["healthy", "stale 1"])
        lost = [one[1:] for one in run.told() if one[0] == 1]
        assert lost[-3:] == [("healthy", "dead"), ("dead", "restarting"), ("restarting", "stale")]
        confirm(run.paths, "1", [(0, 0), (1, 1)])
        run.until_states(["healthy", "healthy 1"])
        run.still_trains()
        assert run.signal(signal.SIGTERM).end()["status"] == "interrupted"
        assert len(theirs.named("engine")) >= 2
    finally:
        theirs.kill()
        wait_for(lambda: not theirs.living(), "the engines to end")


# --- the commands


def test_the_engine_by_hand_is_the_run_s_own(tmp_path: Path) -> None:
    """The command line of an engine that the run would start, on the given address."""
    args = parse(["engine", str(TINY), "--host", "10.0.0.7", "--port", "8000", "--key-file", str(tmp_path / "key"),
                  "--index", "1", f"model.path={MODEL}", "engines.urls=[http://10.0.0.7:8000,http://10.0.0.8:8000]",
                  f"engines.key_file={tmp_path / 'key'}", "learner.pin_cores=false"])
    by_hand = launch_of(args)
    config = load(TINY, ["engines.host=10.0.0.7", "engines.count=1", f"model.path={MODEL}", "learner.pin_cores=false"])
    machine = this_machine()
    own = engine_launch(config, 1, 8000, key_file=tmp_path / "key", cores=machine.cores, device=machine.device)
    assert by_hand == own
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("changes", "said"), [
    (["--host", "0.0.0.0"], "binds every interface"), (["model.path=/no/model"], "holds no config.json")])
def test_an_engine_by_hand_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: list[str],
                                      said: str) -> None:
    assert main(["engine", str(TINY), "--port", "8000", "--key-file", str(tmp_path / "key"), *changes]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "key").exists()


def test_dry_run(engine: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "key").write_text(KEY)
    assert main(["train", str(TINY), "--dry-run", f"runs_dir={tmp_path}", f"model.path={MODEL}", "engines.count=1",
                 f"engines.urls=[{engine.url}]", f"engines.key_file={tmp_path / 'key'}"]) == 0
    said = capsys.readouterr().out
    assert f"engine-0  (engine)  {engine.url}  given: started by somebody else, 4 workers" in said
    assert "api_server" not in said
    assert KEY not in said
