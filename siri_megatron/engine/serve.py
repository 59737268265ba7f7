"""vLLM's own server with its engine in the same process: `python -m siri_megatron.engine.serve VLLM_ARGUMENTS`.

The arguments, the application, its routes and its middleware are those of `vllm serve`; only the engine client differs.
"""

from __future__ import annotations

from argparse import Namespace


def parse(argv: list[str] | None = None) -> Namespace:
    """As `vllm serve` does."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    arguments = make_arg_parser(FlexibleArgumentParser(prog="siri_megatron.engine.serve")).parse_args(argv)
    validate_parsed_serve_args(arguments)
    return arguments


async def serve(arguments: Namespace) -> None:
    """Until SIGTERM, or until the engine has failed."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.api_server.entry import build_and_serve
    from vllm.entrypoints.launchers.launcher import setup_server
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.llm_engine import LLMEngine
    from vllm.v1.executor import Executor

    from siri_megatron.engine.in_process import InProcessEngine

    address, socket = setup_server(arguments, reuse_port=False)
    given = AsyncEngineArgs.from_cli_args(arguments)
    config = given.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
    engine = InProcessEngine(LLMEngine(config, Executor.get_class(config), log_stats=not given.disable_log_stats))
    try:
        await (await build_and_serve(engine, address, socket, arguments))
    finally:
        engine.shutdown()
        socket.close()


def main() -> None:
    import uvloop

    uvloop.run(serve(parse()))


if __name__ == "__main__":
    main()
