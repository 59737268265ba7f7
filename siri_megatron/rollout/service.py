"""The collector process: `python -m siri_megatron.rollout.service RUN_DIR`.

Heavy imports stand inside of functions: the verifier's spawned workers import this module again.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from siri_megatron.errors import DataError
from siri_megatron.paths import RunDir

if TYPE_CHECKING:
    from siri_megatron.config import RunConfig
    from siri_megatron.data.codec import TextCodec
    from siri_megatron.data.prompts import PromptSet
    from siri_megatron.reward.verifier import Verifier
    from siri_megatron.rollout.app import CollectorService

log = logging.getLogger("collector")

SHUTDOWN_S = 1.0
"""How long open long polls may keep a collector that was told to end."""


def run(paths: RunDir) -> None:
    """Load prompts, mend the ledger, serve until killed.

    Raises:
        SiriError: the config, the model directory or the prompts cannot be used.
        Terminated: SIGTERM ended it.
    """
    from siri_megatron import config as configs
    from siri_megatron.data.codec import TextCodec
    from siri_megatron.launch.lastwords import Terminated
    from siri_megatron.ledger.recover import recover

    config = configs.load(paths.config)
    for done in recover(paths.ledger):
        log.info("ledger: %s", done)
    asyncio.run(serve(config, paths, TextCodec.load(config.model.path)))
    raise Terminated


async def serve(config: RunConfig, paths: RunDir, codec: TextCodec) -> None:
    """Serve on a free port of `engines.host`, which collector.json then names, until SIGTERM."""
    from aiohttp import web

    from siri_megatron.files import write_json
    from siri_megatron.reward.verifier import build_verifier

    stop = asyncio.Event()
    # An exception raised by a plain signal handler would be swallowed by whichever task it happens to interrupt.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    verifier = build_verifier(config.reward, codec)
    service = build_service(config, paths, codec, verifier)
    runner = web.AppRunner(service.application(), access_log=None, shutdown_timeout=SHUTDOWN_S)
    await runner.setup()
    try:
        site = web.TCPSite(runner, config.engines.host, 0)  # the system picks a free port: no race
        await site.start()
        url = f"http://{config.engines.host}:{runner.addresses[0][1]}"
        write_json(paths.collector, {"url": url, "pid": os.getpid()})
        log.info("serving on %s", url)
        await stop.wait()
    finally:
        await runner.cleanup()
        await verifier.close()


def build_service(config: RunConfig, paths: RunDir, codec: TextCodec, verifier: Verifier) -> CollectorService:
    """The service with all its prompts in memory: whatever is wrong with them is said before anything is sampled."""
    from siri_megatron.data.prompts import suite_prompts, train_prompts
    from siri_megatron.rollout.app import CollectorService
    from siri_megatron.rollout.collector import Collector
    from siri_megatron.rollout.descriptors import raise_limit
    from siri_megatron.rollout.evaluation import Evaluator
    from siri_megatron.rollout.forced import ForcedAnswer
    from siri_megatron.rollout.suites import suites_of

    collector = evaluator = None
    if config.data.source != "dataset" or config.data.train:
        prompts = train_prompts(config.data, codec, offline=True)  # fetched before anything started
        check_unchanged(prompts, config)
        say_prompts(paths, "training", prompts)
        collector = Collector(config, paths.ledger, prompts, codec.stop_ids, verifier,
                              ForcedAnswer.of(config.reward, codec))
    sets = suite_prompts(config, codec, offline=True)
    for name, found in sets.items():
        say_prompts(paths, name, found)
    if suites := suites_of(config.evaluation, sets):
        evaluator = Evaluator(config, suites, codec, verifier, paths.evaluations)
    client = {"connections": raise_limit(), "context": config.max_model_len,
              "max_num_seqs": config.engines.max_num_seqs if config.engines.admission else None}
    return CollectorService(paths, paths.key.read_text().strip(), collector, evaluator, client=client)


def check_unchanged(prompts: PromptSet, config: RunConfig) -> None:
    """The training prompts are those that the run was started with.

    Raises:
        DataError: their source has changed in between.
    """
    if config.data.fingerprint not in ("", prompts.fingerprint):
        raise DataError(f"the training prompts have the fingerprint {prompts.fingerprint}, the run was started with "
                        f"{config.data.fingerprint}", rule="the prompts of a run do not change while it starts",
                        fix="start it again once their files are written")


def say_prompts(paths: RunDir, name: str, prompts: PromptSet) -> None:
    """Into the log; what was dropped also among the run's events."""
    from siri_megatron.observe.events import EventLog

    log.info("%s: %s", name, prompts.sentence())
    if prompts.dropped:
        EventLog(paths.events).write("prompts", message=f"{name}: {prompts.sentence()}")


def main() -> None:
    from siri_megatron.launch.lastwords import guarded_main

    parser = argparse.ArgumentParser(prog="siri_megatron.rollout.service", description=__doc__)
    parser.add_argument("run_dir", type=Path)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    paths = RunDir(parser.parse_args().run_dir)
    guarded_main("collector", paths, lambda: run(paths))


if __name__ == "__main__":
    main()
