"""What we use of vLLM is there in every GPU release and means what it means in the release that the suite runs on.

The contract is read off the product (`siri_megatron/rollout/vllm_surface.py` says from where); the wheels are read as
text (vllm_reader), by `make test-compat`. An item is a name -> the source that gives it its meaning.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from vllm_reader import NotThere, Sources, plain

from siri_megatron.config import load
from siri_megatron.rollout import vllm_surface
from siri_megatron.rollout.engine_api import parse_answer, request_body
from siri_megatron.rollout.engine_args import engine_launch, options
from siri_megatron.rollout.vllm_surface import DIFFERENCES, RELEASES, ROUTES, SERVER, UNTOUCHED

pytestmark = pytest.mark.compat

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "siri_megatron"
EXTENSION = PACKAGE / "weights" / "engine_extension.py"
PROTOCOL = "vllm.entrypoints.scale_out.token_in_token_out.protocol"
ANSWER = {"": "GenerateTokensResponse", "choices": "GenerateTokensChoice", "logprobs": "GenerateLogProbs",
          "content": "GenerateLogProbsContent", "weight_versions": "WeightVersionSpan"}
"""key under which an object of the answer lies -> its class; "": the answer itself."""
LAYERS = "vllm.model_executor.model_loader.reload.types", "LayerReloadingInfo"
LAYER_MEMBERS = ("loaded_weights", "load_numel", "load_numel_total", "can_load")
COMPACT = {("vllm.outputs", "CompletionOutput"): ("index", "finish_reason", "token_ids", "logprobs", "weight_versions"),
           ("vllm.outputs", "RequestOutput"): ("outputs",),
           ("vllm.logprobs", "FlatLogprobs"): ("token_ids", "logprobs"),
           ("vllm.sampling_params", "SamplingParams"): ("output_kind", "flat_logprobs"),
           ("vllm.config.parallel", "ParallelConfig"): ("rank", "world_size", "data_parallel_index")}
"""What `engine/compact_answers` and the receiver read inside of the server and the worker."""
WORKER = ("init_weight_transfer_engine", "start_weight_update", "update_weights", "finish_weight_update",
          "_start_weight_update", "_check_weight_transfer_engine", "_weight_update_active")
"""What in vLLM's worker calls our receiver, and what our extension sets."""


# --- what we use, by what the product does


def launches() -> list[Any]:
    """Engines as they are started on CPU and GPU, reproducible, ahead of the learners, and neither."""
    tiny = ROOT / "configs" / "tiny.yaml"
    kinds = (["reproducible=true"], ["reproducible=false"], ["reproducible=false", "rollout.lag=1"])
    return [engine_launch(load(tiny, kind), 0, 8000, key_file=Path("k"), cores=(0, 1),
                          device=device)  # type: ignore[arg-type]
            for device in ("cpu", "cuda") for kind in kinds]


def flags() -> set[str]:
    return {name for launch in launches() for name in options(launch)}


def variables() -> set[str]:
    named = {name for launch in launches() for name in launch.env}
    return {name for name in named | {*vllm_surface.INSECURE, vllm_surface.SOCKETS} if name.startswith("VLLM_")}


class Recorded(dict[str, Any]):
    """A JSON object that notes which keys of it were read, under the key where it lies itself."""

    def __init__(self, raw: dict[str, Any], place: str, read: set[tuple[str, str]]) -> None:
        super().__init__({key: recorded(value, key, read) for key, value in raw.items()})
        self.place, self.read = place, read

    def __getitem__(self, key: str) -> Any:
        self.read.add((self.place, key))
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.read.add((self.place, key))
        return super().get(key, default)


def recorded(value: Any, place: str, read: set[tuple[str, str]]) -> Any:
    if isinstance(value, dict):
        return Recorded(value, place, read)
    return [recorded(one, place, read) for one in value] if isinstance(value, list) else value


def answer_keys() -> set[tuple[str, str]]:
    """(where, key) of everything that is read of an answer."""
    read: set[tuple[str, str]] = set()
    choice = {"index": 0, "token_ids": [5, 2], "finish_reason": "stop",
              "logprobs": {"content": [{"token_id": 5, "logprob": -1.0}, {"token_id": 2, "logprob": -0.5}]},
              "weight_versions": [{"version": "3", "start": 0, "end": 2}]}
    parse_answer(recorded({"choices": [choice]}, "", read), n=1, max_tokens=4, stop_ids=[2])
    return read


def vllm_imports() -> list[tuple[str, str]]:
    """Everything that any module of ours imports from vLLM."""
    nodes = [node for file in sorted(PACKAGE.rglob("*.py")) for node in ast.walk(ast.parse(file.read_text()))]
    assert not any(alias.name.startswith("vllm") for node in nodes if isinstance(node, ast.Import)
                   for alias in node.names)  # would need a look of its own
    return [(node.module or "", alias.name) for node in nodes
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm" for alias in node.names]


def receiver_members() -> tuple[set[str], set[str]]:
    """Of our subclass of vLLM's receiver: methods it has, and what it takes from the base class."""
    tree = ast.parse(EXTENSION.read_text())
    receiver = next(one for one in tree.body if isinstance(one, ast.ClassDef) and one.name == "WeightReceiver")
    methods = {one.name for one in receiver.body if isinstance(one, ast.FunctionDef)}
    used = {one.attr for one in ast.walk(receiver)
            if isinstance(one, ast.Attribute) and isinstance(one.value, ast.Name) and one.value.id == "self"}
    own = {one.attr for one in ast.walk(receiver) if isinstance(one, ast.Attribute) and isinstance(one.ctx, ast.Store)}
    return methods, used - own - methods


# --- the contract, as a release's sources give it


def contract(sources: Sources) -> dict[str, str]:
    """item -> its meaning; a thing that is not there is an item without one."""
    return dict([*routes_of(sources), *start_of(sources), *fields_of(sources), *worker_of(sources)])


def meaning(look: Any, *arguments: Any) -> str:
    try:
        return str(look(*arguments))
    except NotThere as error:
        return f"not there: {error}"


def routes_of(sources: Sources) -> Iterator[tuple[str, str]]:
    for path, method in ROUTES.items():
        handlers = [handler for verb, handler in sources.routes(path) if verb == method]
        yield f"route {method} {path}", "\n".join(sorted(set(handlers))) or "not there"


def start_of(sources: Sources) -> Iterator[tuple[str, str]]:
    """The server's module, its options and variables."""
    def option(name: str) -> str:
        frontend = sources.find(SERVER, "make_arg_parser")[0], "FrontendArgs"
        for place in (("vllm.engine.arg_utils", "AsyncEngineArgs"), frontend):
            if "not there" not in (found := meaning(sources.member, *place, name)):
                return found
        raise NotThere(f"option {name}")

    yield f"module {SERVER}", str('__name__ == "__main__"' in sources.text(sources.file(SERVER)))
    yield from ((f"option {name}", meaning(option, name)) for name in sorted(flags()))
    yield from ((f"variable {name}", meaning(sources.variable, name)) for name in sorted(variables()))
    place = "vllm.entrypoints.serve.middleware.register", "init_entrypoints_middleware"
    yield "middleware", meaning(lambda: plain(sources.find(*place)[1]))
    yield "weight transfer config", meaning(sources.member, "vllm.config.weight_transfer", "WeightTransferConfig",
                                            "backend")


def fields_of(sources: Sources) -> Iterator[tuple[str, str]]:
    """Requests and answers."""
    body = request_body([1, 2], n=2, max_tokens=4, temperature=0.9, seed=1, stop_ids=[2], top_p=0.9,
                        priority=1)
    for key in body:
        yield f"request {key}", meaning(sources.member, PROTOCOL, "GenerateRequest", key)
    for key in body["sampling_params"]:
        yield f"sampling {key}", meaning(sources.member, "vllm.sampling_params", "SamplingParams", key)
    for place, key in sorted(answer_keys()):
        yield f"answer {place}.{key}", meaning(sources.member, PROTOCOL, ANSWER[place], key)
    for place, names in COMPACT.items():
        for name in names:
            yield f"inside {place[1]}.{name}", meaning(sources.member, *place, name)
    yield "inside EngineCore._weight_version", meaning(sources.member, "vllm.v1.engine.core", "EngineCore",
                                                       "_weight_version")
    yield "inside generate", meaning(sources.signature, "vllm.v1.engine.async_llm", "AsyncLLM", "generate")
    yield "inside tokens_input", meaning(lambda: plain(sources.find("vllm.inputs.engine", "tokens_input")[1]))
    for key in ("id", "root", "max_model_len"):
        yield f"model {key}", meaning(sources.member, "vllm.entrypoints.serve.engine.protocol", "ModelCard", key)


def worker_of(sources: Sources) -> Iterator[tuple[str, str]]:
    """What the engine extension imports, overrides, and is called by."""
    for module, name in vllm_imports():
        yield f"import {module}.{name}", meaning(lambda m, n: type(sources.find(m, n)[1]).__name__, module, name)
    base = "vllm.distributed.weight_transfer.base", "WeightTransferEngine"
    methods, used = receiver_members()
    yield "receiver must have", str(sources.abstract(*base))
    for name in sorted(used | (methods & set(sources.abstract(*base)) | {"update_weights", "__init__"} & methods)):
        yield f"receiver {name}", meaning(sources.member, *base, name)
    for name in WORKER:
        yield f"worker {name}", meaning(sources.member, "vllm.v1.worker.gpu_worker", "Worker", name)
    for name in LAYER_MEMBERS:
        yield f"layer {name}", meaning(sources.member, *LAYERS, name)
    factory = "vllm.distributed.weight_transfer.factory", "WeightTransferEngineFactory", "register_engine"
    yield "register_engine", meaning(sources.member, *factory)
    for name in ("initialize_layerwise_reload", "finalize_layerwise_reload", "get_layerwise_info"):
        place = "vllm.model_executor.model_loader.reload.layerwise", name
        yield f"reload {name}", meaning(lambda at: plain(sources.find(*at)[1]), place)


# --- the releases


def unpacked(release: str) -> Sources:
    return Sources(ROOT / ".compat" / f"vllm-{release}")


@pytest.fixture(scope="module")
def here() -> dict[str, str]:
    """The contract in the vLLM that is installed: the one that everything is tested with."""
    found = importlib.util.find_spec("vllm")
    assert found is not None
    assert found.origin is not None
    return contract(Sources(Path(found.origin).parents[1]))


def differing(here: dict[str, str], there: dict[str, str]) -> dict[str, str]:
    """item -> the difference, as people read it."""
    return {item: "\n".join(difflib.unified_diff(here[item].splitlines(), there[item].splitlines(), "here", "there",
                                                 lineterm="")) for item in here if here[item] != there[item]}


def test_all_that_we_use_is_here(here: dict[str, str]) -> None:
    assert [item for item, text in here.items() if text.startswith("not there")] == []
    kinds = {item.partition(" ")[0] for item in here}
    assert {"route", "option", "variable", "request", "sampling", "answer", "import", "receiver"} <= kinds
    assert len(here) > 70


@pytest.mark.parametrize("release", RELEASES)
def test_a_gpu_release_means_the_same(here: dict[str, str], release: str) -> None:
    """Apart from the differences that the surface module explains, of which none may be out of date."""
    found = differing(here, contract(unpacked(release)))
    unexplained = {item: text for item, text in found.items() if item not in DIFFERENCES[release]}
    assert not unexplained, "\n\n".join(f"{item}\n{text}" for item, text in unexplained.items())
    assert found.keys() == DIFFERENCES[release].keys()


def test_untouched_weights_are_called_so(here: dict[str, str]) -> None:
    assert here["inside EngineCore._weight_version"] == f"self._weight_version = {UNTOUCHED!r}"


def test_no_route_is_named_elsewhere() -> None:
    """The surface module has every route of vLLM's that the package asks."""
    sources, foreign = unpacked(RELEASES[0]), {"/collect", "/evaluate", "/state"}
    for file in sorted(PACKAGE.rglob("*.py")):
        if file.stem == "vllm_surface":
            continue
        texts = {node.value for node in ast.walk(ast.parse(file.read_text()))
                 if isinstance(node, ast.Constant) and isinstance(node.value, str)}
        named = {text for text in texts - foreign if re.fullmatch(r"/[a-z0-9_]+(/[a-z0-9_]+)*", text)}
        assert [path for path in sorted(named) if sources.routes(path)] == [], file


CHANGES = {
    "route POST /update_weights": ("vllm/entrypoints/rl/online/api_router.py", '"/update_weights"', '"/new_weights"'),
    "route POST /finish_weight_update": ("vllm/entrypoints/rl/online/api_router.py",
                                         "weight_version: Annotated[str | None", "version: Annotated[str | None"),
    "option logprobs_mode": ("vllm/config/model.py", '"processed_logprobs"', '"sampled_logprobs"'),
    "option weight_transfer_config": ("vllm/engine/arg_utils.py", "weight_transfer_config: Weight", "transfer: Weight"),
    "variable VLLM_SERVER_DEV_MODE": ("vllm/envs.py", '"VLLM_SERVER_DEV_MODE": lambda', '"VLLM_DEV": lambda'),
    "sampling stop_token_ids": ("vllm/sampling_params.py", "stop_token_ids: list", "stop_ids: list"),
    "answer choices.weight_versions": ("vllm/entrypoints/scale_out/token_in_token_out/protocol.py",
                                       "weight_versions: list", "versions: list"),
    "receiver must have": ("vllm/distributed/weight_transfer/base.py", "def update_weights(",
                           "@abstractmethod\n    def prepare(self): ...\n\n    def update_weights("),
    "worker update_weights": ("vllm/v1/worker/gpu_worker.py", "def update_weights(self, update_info:",
                              "def update_weights(self, info:"),
}


@pytest.mark.parametrize("item", CHANGES)
def test_a_change_is_found(here: dict[str, str], item: str) -> None:
    """Negative control: the same sources with one thing renamed, removed, or asked for in addition."""
    file, old, new = CHANGES[item]
    original = unpacked(RELEASES[0])
    assert old in original.text(file)
    assert item in differing(here, contract(Sources(original.root, {file: original.text(file).replace(old, new)})))


def test_a_description_is_no_change() -> None:
    """Docstrings, comments and descriptions of fields may differ."""
    one = ast.parse('def f(a: int = Field(1, description="x")):\n    """Says."""\n    return a  # well')
    other = ast.parse('def f(a: int = Field(1, description="y")):\n    return a')
    assert plain(one) == plain(other) != plain(ast.parse("def f(a: int = Field(2)):\n    return a"))
