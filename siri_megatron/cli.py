"""`siri`: train, sft, eval, version. Only the arguments are read here; heavy imports wait until a command runs."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from siri_megatron import __version__
from siri_megatron.errors import SiriError

INTERRUPTED = 130
PLAIN_WIDTH = 120  # of tables in a log file
EPILOG = "exit status: 0 success, 2 refused before anything started, 3 failed, 130 interrupted (resume with --resume)"


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    try:
        return dispatch(parse(argv))
    except SiriError as error:
        print(f"siri: {error.render()}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("siri: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `siri ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def dispatch(args: argparse.Namespace) -> int:
    if args.command == "version":
        print(__version__)
        return 0
    from rich.console import Console

    from siri_megatron.launch import commands

    command = {"train": commands.train, "sft": commands.sft, "eval": commands.evaluate}[args.command]
    return command(args, Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH))


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Arguments, with `key=value` overrides allowed anywhere after the command."""
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    wrong = [text for text in rest if text.startswith("-") or "=" not in text]
    if wrong:
        parser.error(f"unrecognised arguments: {' '.join(wrong)} (overrides are key.sub=value)")
    args.overrides = [*getattr(args, "overrides", []), *rest]
    return args


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="siri", epilog=EPILOG, description=(
        "Megatron-core learners and a vLLM rollout fleet under a moving response budget (SIRI)."))
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _train(commands.add_parser("train", help="train a run", epilog=EPILOG))
    _sft(commands.add_parser("sft", help="supervised warm start of a tiny model", epilog=EPILOG))
    _eval(commands.add_parser("eval", help="accuracy, tokens and J(B) of a model or a run", epilog=EPILOG))
    commands.add_parser("version", help="print the version")
    return parser


def _train(parser: argparse.ArgumentParser) -> None:
    _config(parser)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--replay", type=Path, metavar="RUN", help="train from the ledger of RUN, without engines")
    mode.add_argument("--rollout-only", action="store_true", help="fill a ledger, without learners")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--resume", action="store_true", help="go on from the last commit (or start, if there is none)")
    start.add_argument("--fresh", action="store_true", help="start again; an earlier run is kept as NAME.previous")
    _dry_run(parser)


def _sft(parser: argparse.ArgumentParser) -> None:
    _config(parser)
    parser.add_argument("--fresh", action="store_true", help="start again; an earlier run is kept as NAME.previous")
    _dry_run(parser)


def _eval(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", type=Path, metavar="DIR_OR_RUN",
                        help="a Hugging Face model directory, or a run (its newest export)")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="overrides of the config")
    parser.add_argument("--budgets", type=_numbers, metavar="B,B,...", help="budgets at which accuracy is reported")
    parser.add_argument("--samples", type=int, metavar="N", help="samples a problem")
    parser.add_argument("--problems", type=int, metavar="N", help="held-out problems")
    parser.add_argument("--config", type=Path, help="run config, for a model that lies in no run directory")


def _config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, metavar="CONFIG", help="YAML file")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="overrides, e.g. budget.l_min=48")


def _dry_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true",
                        help="print the resolved config, the processes and the budget of every phase; start nothing")


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers like 32,64,128") from None


if __name__ == "__main__":
    sys.exit(main())
