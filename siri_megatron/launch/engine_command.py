"""`siri engine`: one engine by hand, for a run that is given its address (`engines.urls`)."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import threading
from argparse import Namespace
from pathlib import Path

from siri_megatron import config as configs
from siri_megatron.config import RunConfig
from siri_megatron.errors import ConfigError
from siri_megatron.launch.key import make_key
from siri_megatron.launch.orphans import end_orphans
from siri_megatron.launch.preflight import this_machine
from siri_megatron.launch.spec import child_environment
from siri_megatron.rollout.engine_args import EngineLaunch, engine_launch

GRACE_S = 4.0


def engine(args: Namespace) -> int:
    """Run the engine under a guard, which ends the whole of it with this process, be it by SIGKILL.

    Returns its exit status. Ctrl-C, SIGTERM and SIGHUP end it.
    """
    launch, tag = launch_of(args), secrets.token_hex(8)
    command = [sys.executable, "-m", "siri_megatron.launch.guard", "--tag", tag,
               "--grace", str(GRACE_S), "--", *launch.argv]
    environment = child_environment(os.environ, launch.env)
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, start_new_session=True) as guard:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: guard.send_signal(signal.SIGTERM))
        status = guard.wait()
    if status < 0:  # the guard was killed: what the server had started lives on
        end_orphans(tag)
    return status


def launch_of(args: Namespace) -> EngineLaunch:
    """What is started: the run's engine, but on the given address and alone on its machine.

    Raises:
        ConfigError: the config is wrong, the model is not there, or the address is not one of this machine.
    """
    config = configs.load(args.config, args.overrides)
    config = _alone(config, args.host or config.engines.host)
    if not (config.model.path / "config.json").is_file():
        raise ConfigError(f"model.path={config.model.path} holds no config.json", rule="an engine serves a model "
                          "directory of Hugging Face", fix="give model.path=DIRECTORY as it is called on this machine")
    key_file = shared_key(args.key_file.absolute())
    machine = this_machine()
    return engine_launch(config, args.index, args.port, key_file=key_file, cores=machine.cores, device=machine.device,
                         gpus=machine.gpus[:config.engines.tp])


def _alone(config: RunConfig, host: str) -> RunConfig:
    raw = config.engines.model_dump(mode="json") | {"host": host, "count": 1, "urls": [], "key_file": None,
                                                    "base_port": 0, "min_engines": 0}
    model = config.model.model_dump(mode="json") | {"path": str(config.model.path.absolute())}
    own = {"engines": raw, "model": model, "launch": {}}
    return configs.validate(config.model_dump(mode="json") | own, "siri engine")


def shared_key(path: Path) -> Path:
    """The key file, made by whoever comes first (others may be started at the same moment)."""
    if not path.exists():
        own = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
        make_key(own)
        try:
            os.link(own, path)  # whole or not at all, and never over another's
        except FileExistsError:
            return path
        finally:
            own.unlink()
    return path
