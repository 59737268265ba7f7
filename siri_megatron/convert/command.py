"""`siri convert`: arguments into calls, a progress bar, and what is said at the end."""

from __future__ import annotations

import re
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as Bar

from siri_megatron.convert import convert
from siri_megatron.convert.common_state import in_megatron_lm
from siri_megatron.convert.convert import Done, Options, Progress, Verified, nbytes
from siri_megatron.convert.hf import HfWeights
from siri_megatron.convert.megatron import MegatronWeights
from siri_megatron.convert.source import name_of
from siri_megatron.convert.verify import PROMPTS
from siri_megatron.errors import ConfigError, SiriError
from siri_megatron.observe.render import say

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def run(args: Namespace, console: Console) -> int:
    """Run the conversion that the arguments ask for; returns the exit status."""
    commands: dict[str, Callable[[Namespace, Console], None]] = {
        "hf-to-megatron": _hf_to_megatron, "megatron-to-hf": _megatron_to_hf, "reshard": _reshard, "verify": _verify}
    try:
        commands[args.conversion](args, console)
    except SiriError as error:
        raise _without_keys(error) from None
    return 0


def _without_keys(error: SiriError) -> SiriError:
    """Who converts has no configuration: the checks shared with `siri train` speak of its model.path."""
    what, rule, fix = (re.sub(r"(?<!run's )model\.path", "the path", text.replace("model.path=", ""))
                       for text in (error.what, error.rule, error.fix))
    return type(error)(what, rule=rule, fix=fix)


def _hf_to_megatron(args: Namespace, console: Console) -> None:
    start = time.monotonic()
    with _bars(console) as progress:
        done = convert.hf_to_megatron(args.source, args.destination, tp=args.tp, pp=args.pp, options=_options(args),
                                      progress=progress)
    _say_done(done, f"{args.destination} (tp={args.tp} pp={args.pp})", start, console)
    if not in_megatron_lm(rope := done.source.arch.rope):
        say(console, f"note: Megatron-LM's arguments know no rope_type={rope.kind} of this shape, and common.pt says "
                     "nothing of it: a Megatron-LM tree would compute another rotary table (these learners do not)")


def _megatron_to_hf(args: Namespace, console: Console) -> None:
    start, shard_bytes = time.monotonic(), size(args.max_shard_size)
    with _bars(console) as progress:
        done = convert.megatron_to_hf(args.source, args.destination, hf=args.hf, shard_bytes=shard_bytes,
                                      options=_options(args), progress=progress)
    _say_done(done, str(args.destination), start, console)


def _reshard(args: Namespace, console: Console) -> None:
    start = time.monotonic()
    with _bars(console) as progress:
        done = convert.reshard(args.source, args.destination, tp=args.tp, pp=args.pp, hf=args.hf,
                               options=_options(args), progress=progress)
    _say_done(done, f"{args.destination} (tp={args.tp} pp={args.pp})", start, console)


def _verify(args: Namespace, console: Console) -> None:
    hf, megatron = HfWeights.open(args.source), MegatronWeights.open(args.destination, hf=args.hf)
    with _bars(console) as progress:
        verified = convert.verify(hf, megatron, prompts=_prompts(args), progress=progress)
    _say_verified(verified, console)
    say(console, f"{args.source} and {args.destination} are the same model")


def _options(args: Namespace) -> Options:
    dtype = getattr(torch, args.dtype) if getattr(args, "dtype", None) else None
    return Options(dtype=dtype, verify=args.verify, prompts=_prompts(args), force=args.force)


def _prompts(args: Namespace) -> tuple[str, ...]:
    """Of the logit comparison."""
    if getattr(args, "no_logits", True):
        return ()
    if args.prompts is None:
        return PROMPTS
    try:
        lines = tuple(line for line in args.prompts.read_text().splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--prompts {args.prompts} cannot be read: {error}", rule="a text file, one prompt a line",
                          fix="give such a file, or leave --prompts out") from None
    if not lines:
        raise ConfigError(f"--prompts {args.prompts} is empty", rule="one prompt a line", fix="add some")
    return lines


def size(text: str) -> int:
    """Bytes of `5GB`, `500MB`, `100KB` or a plain number.

    Raises:
        ConfigError: something else.
    """
    found = re.fullmatch(r"(\d+)\s*(GB|MB|KB|)", text.strip().upper())
    if not found or not int(found[1]):
        raise ConfigError(f"--max-shard-size {text}", rule="a number of bytes with GB, MB or KB", fix="for example 5GB")
    return int(found[1]) * UNITS[found[2]]


@contextmanager
def _bars(console: Console) -> Iterator[Progress]:
    """Bars on a terminal; nothing in a log file."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
               TimeRemainingColumn())
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        def start(what: str, total: int) -> Callable[[int], None]:
            task = bar.add_task(what, total=total)
            return lambda done: bar.advance(task, done)

        yield start


def _say_done(done: Done, made: str, start: float, console: Console) -> None:
    if done.verified:
        _say_verified(done.verified, console)
    written, took = nbytes(done.source, done.dtype), time.monotonic() - start
    say(console, f"{made}: {written / 1e6:,.1f} MB of {done.source.arch.family} weights in {name_of(done.dtype)}, "
                 f"{took:.1f} s")


def _say_verified(verified: Verified, console: Console) -> None:
    tensors, logits = verified.tensors, verified.logits
    say(console, "configs: equal in every field of the architecture")
    say(console, f"tensors: {tensors.tensors} with {tensors.parameters:,} parameters; names, shapes, types "
                 f"({tensors.dtype}) and all bits equal")
    if logits:
        say(console, f"logits: {logits.prompts} prompts, largest difference {logits.largest:.2e} (largest logit "
                     f"{logits.scale:.2f}), same next token at {logits.same_argmax:.1%} of the positions")
