"""The real command line: bad input gives both values, the rule and the fix, no traceback, and starts nothing."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from launch_models import TENSORS, write_form, write_shard
from launch_processes import Marked
from process_table import descendants

from siri_megatron import __version__, cli

WARMSTART = str(Path(__file__).resolve().parents[2] / "configs" / "tiny-warmstart.yaml")
RAW = {"name": "run", "budget": {"l_min": 16, "l_max": 64, "cycle_steps": 4, "cycles": 1}, "optimizer": {"lr": 1e-4},
       "data": {"max_prompt_tokens": 32}, "evaluation": {"budgets": [32, 64]}}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A directory with `model`, `config.yaml` for it, and room for runs."""
    write_form(tmp_path / "model")
    raw = RAW | {"model": {"path": str(tmp_path / "model")}, "runs_dir": str(tmp_path / "runs")}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(raw))
    return tmp_path


def siri(marked: Marked, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `siri`; nothing that it started may be left."""
    process = marked.start(sys.executable, "-m", "siri_megatron.cli", *arguments)
    out, err = process.communicate(timeout=180)
    assert marked.living() == []
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What `siri` says to input that it refuses, without a traceback and before it starts anything."""
    done = here(capsys, *arguments)
    assert done.returncode == 2, done.stderr + done.stdout
    assert "Traceback" not in done.stderr + done.stdout
    return done.stderr


def here(capsys: pytest.CaptureFixture[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """`siri` in this process, starting nothing: in one of its own it would mostly import."""
    before = descendants(os.getpid())
    code = cli.main(list(arguments))
    assert descendants(os.getpid()) <= before
    said = capsys.readouterr()
    return subprocess.CompletedProcess(arguments, code, said.out, said.err)


def train(marked: Marked, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return siri(marked, "train", str(home / "config.yaml"), *arguments)


def nothing(home: Path) -> None: ...


def no_model(home: Path) -> None:
    (home / "model").rename(home / "elsewhere")


def broken_json(home: Path) -> None:
    (home / "model" / "config.json").write_text("{broken")


def no_weights(home: Path) -> None:
    (home / "model" / "model.safetensors").rename(home / "model" / "pytorch_model.bin")


def cut_weights(home: Path) -> None:
    shard = home / "model" / "model.safetensors"
    os.truncate(shard, shard.stat().st_size - 100)


def empty_weights(home: Path) -> None:
    (home / "model" / "model.safetensors").write_bytes(b"")


def missing_shard(home: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (home / "model" / "model.safetensors.index.json").write_text(json.dumps(index))


def no_tokenizer(home: Path) -> None:
    (home / "model" / "tokenizer.json").unlink()


def empty_tokenizer(home: Path) -> None:
    (home / "model" / "tokenizer.json").write_text("{}")


def no_stop_id(home: Path) -> None:
    write_form(home / "model", eos_token_id=None)


def missing_tensor(home: Path) -> None:
    write_shard(home / "model" / "model.safetensors",
                {name: shape for name, shape in TENSORS.items() if name != "model.norm.weight"})


def surplus_tensor(home: Path) -> None:
    write_shard(home / "model" / "model.safetensors", TENSORS | {"model.layers.7.bias": [3]})


def misshapen_tensor(home: Path) -> None:
    write_shard(home / "model" / "model.safetensors", TENSORS | {"model.norm.weight": [31]})


def integer_weights(home: Path) -> None:
    write_shard(home / "model" / "model.safetensors", TENSORS, kind="I32")


def prompt_files(home: Path, text: str) -> None:
    for name in ("train", "eval"):
        (home / f"{name}.jsonl").write_text(text)
    raw = yaml.safe_load((home / "config.yaml").read_text())
    raw["data"] |= {"source": "dataset", "train": str(home / "train.jsonl"), "eval": str(home / "eval.jsonl")}
    (home / "config.yaml").write_text(yaml.safe_dump(raw))


def torn_prompts(home: Path) -> None:
    prompt_files(home, '{"prompt": "a1", "answer": "1"}\n{"prompt": "a1" "answer"}\n')


def no_prompts(home: Path) -> None:
    prompt_files(home, "\n")


def long_prompts(home: Path) -> None:
    prompt_files(home, json.dumps({"prompt": "a1" * 100, "answer": "1"}))


def wrong_template(home: Path) -> None:
    (home / "model" / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{% for m in messages %}"}))


def short_model(home: Path) -> None:
    write_form(home / "model", max_position_embeddings=64)


def blocked_runs(home: Path) -> None:
    (home / "runs").write_text("a file where a directory is wanted")


def earlier_run(home: Path) -> None:
    (home / "runs" / "run").mkdir(parents=True)
    (home / "runs" / "run" / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1}\n')


BAD = [
    ("unknown key", nothing, ["budget.lmin=3"], ["budget.lmin", "unknown key", "3"]),
    ("wrong type", nothing, ["budget.l_min=few"], ["budget.l_min = 'few'", "valid integer"]),
    ("out of range", nothing, ["rollout.samples_per_prompt=1"], ["samples_per_prompt = 1", "greater than or equal"]),
    ("caps in the wrong order", nothing, ["budget.l_min=99"], ["l_min=99", "l_max=64"]),
    ("no such layout", nothing, ["learner.tp=3"], ["learner.tp=3", "num_attention_heads=4", "nearest layout"]),
    ("too many stages", nothing, ["learner.pp=4"], ["learner.pp=4", "num_hidden_layers=2"]),
    ("no model", no_model, [], ["/model does not exist", "siri sft"]),
    ("config.json is not JSON", broken_json, [], ["config.json is not JSON", "line 1"]),
    ("no weights", no_weights, [], ["no *.safetensors", "pytorch_model.bin"]),
    ("weights cut off", cut_weights, [], ["model.safetensors has ", " bytes, its header asks for "]),
    ("weights empty", empty_weights, [], ["model.safetensors (0 bytes)", "header"]),
    ("shard missing", missing_shard, [], ["model-00002-of-00002.safetensors", "1 of the 2 shards"]),
    ("no tokenizer", no_tokenizer, [], ["no tokenizer", "tokenizer.json"]),
    ("cap above the engines' context", nothing, ["engines.max_model_len=80"],
     ["96 tokens", "max_prompt_tokens=32 + largest cap 64", "max_model_len=80", "engines.max_model_len=96"]),
    ("context above the model's positions", short_model, [], ["96 tokens", "max_position_embeddings=64"]),
    ("run directory cannot be made", blocked_runs, [], ["/runs cannot be written", "user id"]),
    ("run directory on a file system without writing", nothing, ["runs_dir=/proc/siri"], ["/proc cannot be written"]),
    ("run directory holds a run", earlier_run, [],
     ["already holds a run (2 steps)", "--resume", "name=OTHER", "--fresh"]),
    ("prompts missing", nothing, ["data.source=dataset", "data.train=/no/such.jsonl"],
     ["prompts /no/such.jsonl do not exist"]),
    ("no prompts named", nothing, ["data.source=dataset"], ["data.train is not set", "data.train=prompts.jsonl"]),
    ("prompts that nobody reads", nothing, ["data.train=train.jsonl"], ["train is never read with source=digit_sum"]),
    ("no room for a question", nothing, ["evaluation.max_tokens=63"],
     ["evaluation.max_tokens=63", "one question of each suite may take 64"]),
    ("suites of one name", nothing, ["evaluation.suites=[{name: held-out, data: x.jsonl}]"],
     ["two suites have the name 'held-out'"]),
    ("two budgets and none", nothing, ["evaluation.budgets=[]"], ["evaluation.budgets = []", "at least 1 item"]),
    ("negative budget", nothing, ["evaluation.budgets=[-3]"], ["evaluation.budgets.0 = -3", "greater than or equal"]),
    ("no budget to score at", nothing, ["rollout.budget_grid=[]"], ["rollout.budget_grid", "at least 1 item"]),
    ("number that is none", nothing, ["optimizer.lr=.inf"], ["optimizer.lr = inf", "finite number"]),
    ("name that leads elsewhere", nothing, ["name=../x"], ["name = '../x'", "pattern"]),
    ("scope that nobody reads", nothing, ["reward.scope=boxed"], ["scope=boxed with verifier=exact"]),
    ("ports that end too soon", nothing, ["engines.base_port=65000", "engines.count=600"], ["reaches port 65599"]),
    ("fleet that is too small from the start", nothing, ["engines.count=2", "engines.min_engines=3"],
     ["min_engines=3 is above count=2"]),
    ("engine that is dead before it is suspect", nothing, ["engines.suspect_s=90"],
     ["suspect_s=90 is above dead_s=60"]),
    ("terms in the wrong order", nothing, ["data.max_terms=2"], ["min_terms=3", "max_terms=2"]),
    ("micro-batch too small", nothing, ["batching.tokens_per_micro_batch=80"],
     ["tokens_per_micro_batch=80", "32 prompt + 64 response", "=96 or more"]),
    ("more memory than there is", nothing, ["engines.kv_cache_gib=100000"],
     ["2 engines x engines.kv_cache_gib=100000"]),
    ("tokenizer empty", empty_tokenizer, [], ["the tokenizer of ", "cannot be read"]),
    ("no stop id", no_stop_id, [], ["names no stop token", "eos_token_id"]),
    ("tensor missing", missing_tensor, [], ["lacks 1 tensors: model.norm.weight"]),
    ("tensor surplus", surplus_tensor, [], ["surplus of 1 tensors: model.layers.7.bias"]),
    ("tensor misshapen", misshapen_tensor, [], ["model.norm.weight", "shape [31]", "asks for [32]"]),
    ("integer weights", integer_weights, [], ["is of type I32"]),
    ("prompts torn", torn_prompts, [], ["train.jsonl:2 is not JSON"]),
    ("prompts empty", no_prompts, [], ["train.jsonl hold no rows"]),
    ("prompts too long", long_prompts, [], ["1 of 1 prompts have more than 32 tokens", "has 200"]),
    ("chat without a template", nothing, ["data.chat=true"], ["data.chat is set", "no chat template"]),
    ("chat template broken", wrong_template, ["data.chat=true"], ["chat template cannot be used"]),
    ("template without a place", nothing, ["data.template=hi"], ["data.template 'hi' has no {prompt}"]),
    ("replay of nothing", nothing, ["--replay", "gone"], ["run gone is neither a directory nor in"]),
    ("replay of an empty run", earlier_run, ["name=new", "--replay", "run"],
     ["holds 0 closed steps", "schedule has 4"]),
    ("foreign host", nothing, ["engines.host=203.0.113.7"], ["203.0.113.7 is not an address of this machine"]),
]


@pytest.mark.parametrize(("spoil", "arguments", "expected"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_input(capsys: pytest.CaptureFixture[str], home: Path, spoil: Callable[[Path], None],
                   arguments: list[str], expected: list[str]) -> None:
    spoil(home)
    before = sorted(home.rglob("*"))
    said = refused(capsys, "train", str(home / "config.yaml"), *arguments)
    assert [text for text in (*expected, "  rule: ", "  fix:  ") if text not in said] == []
    assert sorted(home.rglob("*")) == before


def test_bad_input_in_a_process_of_its_own(marked: Marked, home: Path) -> None:
    no_model(home)
    done = train(marked, home)
    assert (done.returncode, done.stdout, done.stderr.startswith("siri: ")) == (2, "", True), done.stderr


def test_good_input_is_the_negative_control(marked: Marked, home: Path) -> None:
    done = train(marked, home, "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")


def test_hub_out_of_reach(marked: Marked, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing has started, and no child of the hub client is left."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(home / "hub"))
    done = train(marked, home, "data.source=dataset", "data.train.preset=deepscaler")
    assert done.returncode == 2
    for text in ("data set agentica-org/DeepScaleR-Preview-Dataset, split train cannot be had", f"HF_HOME={home}/hub",
                 "hf download --repo-type dataset agentica-org/DeepScaleR-Preview-Dataset", "  rule: "):
        assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert not (home / "runs").exists()


def test_port_in_use_names_port_and_holder(marked: Marked, home: Path) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        done = train(marked, home, f"engines.base_port={port}")
    assert done.returncode == 2
    assert f"port {port} on 127.0.0.1 is in use by pid {os.getpid()} (" in done.stderr
    assert not (home / "runs").exists()


def test_config_that_is_not_there_or_not_yaml(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    assert "gone.yaml does not exist" in refused(capsys, "train", str(home / "gone.yaml"))
    (home / "config.yaml").write_text("a: [1,\nb: 2")
    assert "is not readable YAML" in refused(capsys, "train", str(home / "config.yaml"))


@pytest.mark.parametrize(("content", "expected"), [
    (b"extends: config.yaml\n", "config.yaml extends itself: config.yaml extends config.yaml"),
    (b"extends: [a.yaml, b.yaml]\n", "extends is ['a.yaml', 'b.yaml']"),
    (b"name: \xff\n", "is not readable YAML"),
    (b"- a\n", "holds a list, not a mapping"),
    (b"", "holds a NoneType, not a mapping"),
])
def test_config_that_cannot_be_one(capsys: pytest.CaptureFixture[str], home: Path, content: bytes,
                                   expected: str) -> None:
    (home / "config.yaml").write_bytes(content)
    assert expected in refused(capsys, "train", str(home / "config.yaml"))


def test_config_that_is_a_directory(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    assert f"config {home} is no file" in refused(capsys, "train", str(home))


def test_dry_run_prints_config_processes_and_budget_and_starts_nothing(capsys: pytest.CaptureFixture[str],
                                                                        home: Path) -> None:
    done = here(capsys, "train", str(home / "config.yaml"), "learner.tp=2", "--dry-run", "engines.count=1")
    assert yaml.safe_load(done.stdout.split("# processes")[0])["learner"]["tp"] == 2
    assert all(role in done.stdout for role in ("engine-0  (engine)", "collector  (service)", "learner-1  (main)"))
    assert "engine-1" not in done.stdout
    assert [line.split()[:3] for line in done.stdout.splitlines() if line.startswith("iter")] == [
        ["iter1-compressed", "compression", "0..1"], ["iter1-expanded", "expansion", "2..3"]]
    assert not (home / "runs").exists()


def test_dry_run_of_a_directory_in_use_is_allowed(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    earlier_run(home)
    assert here(capsys, "train", str(home / "config.yaml"), "--dry-run").returncode == 0


def test_resume_with_another_method_names_the_keys(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    earlier_run(home)
    raw = yaml.safe_load((home / "config.yaml").read_text())
    (home / "runs" / "run" / "config.yaml").write_text(yaml.safe_dump(raw))
    said = refused(capsys, "train", str(home / "config.yaml"), "--resume", "budget.l_min=8", "learner.tp=2")
    assert "budget.l_min was 16, is 8" in said
    assert "learner.tp" not in said


def test_resume_of_a_complete_run_says_so(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    earlier_run(home)
    (home / "runs" / "run" / "result.json").write_text('{"status": "success"}')
    done = here(capsys, "train", str(home / "config.yaml"), "--resume")
    assert (done.returncode, "is complete: nothing to resume" in done.stdout) == (0, True)


def test_resume_from_a_damaged_commit_is_refused_before_anything_starts(capsys: pytest.CaptureFixture[str], home: Path
                                                                         ) -> None:
    earlier_run(home)
    commit = home / "runs" / "run" / "checkpoints" / "step-000004" / "commit.json"
    commit.parent.mkdir(parents=True)
    commit.write_text('{"step": null}')
    metrics = home / "runs" / "run" / "metrics.jsonl"
    before = metrics.read_bytes()
    said = refused(capsys, "train", str(home / "config.yaml"), "--resume")
    assert str(commit) in said
    assert metrics.read_bytes() == before
    assert commit.exists()


def test_running_run_is_refused_by_the_pid_of_its_supervisor(marked: Marked, home: Path) -> None:
    root = home / "runs" / "run"
    root.mkdir(parents=True)
    with (root / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        done = train(marked, home, "--resume")
    assert (done.returncode, f"supervisor pid {os.getpid()} is running" in done.stderr) == (3, True)


@pytest.mark.engine
def test_engine_that_dies_at_start(marked: Marked, home: Path) -> None:
    """A real `vllm serve`, given an argument that it does not know."""
    model = Path(__file__).parents[2] / "configs" / "models" / "tiny-digits"
    done = train(marked, home, "--rollout-only", "engines.extra_args=[--no-such-argument]", "engines.count=1",
                 f"model.path={model}")
    assert done.returncode == 3, done.stdout + done.stderr
    result = json.loads((home / "runs" / "run" / "result.json").read_text())
    assert result["reason"].startswith("engine-0: ended with status 2; its log ends:")
    assert "unrecognized arguments: --no-such-argument" in result["reason"]
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(("arguments", "expected"), [
    (["eval", "{home}/gone"], "/gone does not exist"),
    (["eval", "{home}/runs/run"], "has no export"),
    (["eval", "{home}/model"], "add --config"),
    (["eval", "{home}/model", "--config", "{home}/config.yaml", "--budgets", "32,4096"], "max_position_embeddings=256"),
    (["sft", "{home}/gone.yaml"], "gone.yaml does not exist"),
    (["sft", WARMSTART, "learner.tp=3"], "num_attention_heads=4"),
    (["sft", WARMSTART, "data.max_prompt_tokens=1000"], "max_position_embeddings=1024"),
    (["sft", WARMSTART, "init=null", "model_path={home}/model", "learner.pp=4"], "num_hidden_layers=2"),
])
def test_bad_input_of_other_commands(capsys: pytest.CaptureFixture[str], home: Path, arguments: list[str],
                                     expected: str) -> None:
    earlier_run(home)
    (home / "runs" / "run" / "config.yaml").write_text((home / "config.yaml").read_text())
    assert expected in refused(capsys, *(text.format(home=home) for text in arguments))


@pytest.mark.parametrize("arguments", [
    [], ["nonsense"], ["train"], ["train", "c.yaml", "--bogus"], ["train", "c.yaml", "-x", "no-equals"],
    ["train", "c.yaml", "--resume", "--fresh"], ["eval", "d", "--budgets", "a,b"]])
def test_usage_errors(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert (ended.value.code, "usage: siri" in capsys.readouterr().err) == (2, True)


def test_version(marked: Marked) -> None:
    assert siri(marked, "version").stdout.strip() == __version__


def test_help_imports_nothing_heavy() -> None:
    script = ("import sys\nfrom siri_megatron import cli\n"
              "try:\n    cli.main(['--help'])\nexcept SystemExit:\n    print('MODULES', *sys.modules)")
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=180)
    names = set(done.stdout.partition("MODULES")[2].split())
    heavy = {"torch", "vllm", "megatron", "transformers", "numpy", "pyarrow", "pydantic", "rich", "httpx", "aiohttp"}
    assert names & heavy == set()
    assert "siri_megatron.cli" in names


def test_every_command_has_something_that_runs_it() -> None:
    choices = next(action.choices for action in cli.build_parser()._actions if isinstance(action.choices, dict))
    assert set(choices) == {*cli.COMMANDS, "version"}
    for place in cli.COMMANDS.values():
        module, _, name = place.partition(":")
        assert callable(getattr(import_module(f"siri_megatron.{module}"), name)), place
