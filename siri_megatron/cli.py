"""The commands of `siri`. Only arguments are read here; heavy imports wait for a command."""

from __future__ import annotations

import argparse
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from siri_megatron import __version__
from siri_megatron.errors import SiriError

if TYPE_CHECKING:
    from rich.console import Console

COMMANDS = {
    "train": "launch.commands:train", "sft": "launch.commands:sft", "eval": "launch.commands:evaluate",
    "plan": "launch.plan:plan", "report": "report.command:report", "study": "study.command:study",
    "convert": "convert.command:run", "engine": "launch.engine_command:engine", "prefetch": "launch.prefetch:prefetch",
    "doctor": "doctor.command:doctor", "launch": "launch.launch_command:launch"}
"""What runs a command: module:function."""
BARE = ("engine", "prefetch", "doctor")
"""Those that print without rich, which a machine may lack."""
INTERRUPTED = 130
WITHOUT_OVERRIDES = ("convert", "doctor", "report", "study", "version")
PLAIN_WIDTH = 120  # of tables in a log file
EPILOG = ("exit status: 0 success, 2 refused before anything started, 3 failed, 75 lost a node, 130 interrupted (both: "
          "go on with --resume)")


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
    """Import what the command needs, and run it."""
    if args.command == "version":
        print(__version__)
        return 0
    module, _, name = COMMANDS[args.command].partition(":")
    command = getattr(import_module(f"siri_megatron.{module}"), name)
    status: int = command(args) if args.command in BARE else command(args, _console())
    return status


def _console() -> Console:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Arguments, with `key=value` overrides allowed anywhere after the command."""
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    wrong = [text for text in rest if text.startswith("-") or "=" not in text]
    if args.command in WITHOUT_OVERRIDES:
        wrong = rest
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
    _plan(commands.add_parser("plan", help="memory, seconds and GPU-hours of a run, before it is queued"))
    _report(commands.add_parser("report", help="one static page of a run, or of several beside each other"))
    _study(commands.add_parser("study", help="arms x seeds of real runs, compared (docs/study/)"))
    _convert(commands.add_parser("convert", help="Hugging Face directories to Megatron checkpoints and back"))
    _engine(commands.add_parser("engine", help="one engine by hand, for a run that is given its address"))
    _prefetch(commands.add_parser("prefetch", help="fetch model and data, for compute nodes without network"))
    _doctor(commands.add_parser("doctor", help="does this machine hold what a run needs?"))
    _launch(commands.add_parser("launch", help="run on a cluster: submit, look, read logs, cancel"))
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
    nodes = parser.add_argument_group("several nodes", "given by `siri launch`, which starts the command on each node")
    nodes.add_argument("--nodes", type=_positive, metavar="N", help="nodes of the run (launch.nodes)")
    nodes.add_argument("--node", type=int, default=0, metavar="I", help="which one this is; 0 leads")
    nodes.add_argument("--head", type=_address, metavar="HOST:PORT", help="where node 0 listens for the others")


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
    parser.add_argument("--suite", action="append", metavar="NAME", dest="suites",
                        help="only this suite: one of evaluation.suites, or a known data set; may be repeated")
    parser.add_argument("--resume", action="store_true", help="go on with a killed evaluation of this model")
    parser.add_argument("--config", type=Path, help="run config, for a model that lies in no run directory")


def _study(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("plans", nargs="+", type=Path, metavar="PLAN", help="configs/study/*.yaml")
    parser.add_argument("--out", type=Path, metavar="DIR", help="tables and pictures go to DIR/NAME (runs/study)")
    parser.add_argument("--lanes", type=_positive, metavar="N", help="runs side by side, a core each (all cores)")
    parser.add_argument("--collect", action="store_true", help="start nothing: gather what was run")
    _dry_run(parser)


def _doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dir", type=Path, default=Path("runs"), metavar="DIR",
                        help="directory on the file system of the runs (runs)")
    parser.add_argument("--json", action="store_true", help="the checks as JSON")


def _prefetch(parser: argparse.ArgumentParser) -> None:
    _config(parser)
    parser.add_argument("--model", metavar="OWNER/NAME", help="the model's name on the hub, if model.path is not there")
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit of the model")


def _engine(parser: argparse.ArgumentParser) -> None:
    _config(parser)
    parser.add_argument("--host", help="address of this machine to listen on (engines.host of the config)")
    parser.add_argument("--port", type=_positive, required=True, metavar="P", help="port to listen on")
    parser.add_argument("--key-file", type=Path, required=True, metavar="F",
                        help="file with the key that every request must have; made if it is not there")
    parser.add_argument("--index", type=int, default=0, metavar="I", help="its place in engines.urls (for its seed)")


def _plan(parser: argparse.ArgumentParser) -> None:
    _config(parser)
    parser.add_argument("--gpu", metavar="NAME", help="GPU of the machine: a100, h100, h200")
    parser.add_argument("--nodes", type=_positive, metavar="N", help="nodes (as many as the run needs)")
    parser.add_argument("--gpus-per-node", type=_positive, metavar="M", help="GPUs of a node (8)")
    parser.add_argument("--compare", action="append", metavar="LAYOUT",
                        help="another layout beside the config's, e.g. tp=2,dp=2,engines=4; may be given several times")
    parser.add_argument("--lengths", metavar="FILE_OR_NAME", help=(
        "response lengths: a JSON list, a run directory, or default, r1, full, lognormal:MEDIAN[:SIGMA]"))
    parser.add_argument("--json", action="store_true", help="everything, as JSON")
    calibration = parser.add_mutually_exclusive_group()
    calibration.add_argument("--calibrate", action="store_true",
                             help="measure this machine first, by a short run of the config at three caps")
    calibration.add_argument("--calibrate-from", type=Path, metavar="RUN", help="take the rates from an earlier run")
    parser.add_argument("--calibration", type=Path, metavar="FILE",
                        help="where rates are kept (runs_dir/calibration.json; read if this machine wrote it)")


def _launch(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, text in (("slurm", "submit a run to Slurm (or go on with it)"),
                       ("local", "the same job with every node as a process of this machine")):
        start = actions.add_parser(name, help=text)
        _config(start)
        start.add_argument("--replay", type=Path, metavar="RUN", help="train from the ledger of RUN, without engines")
        start.add_argument("--dry-run", action="store_true", help="print the resolved config and the script; no more")
    for name, text in (("status", "what Slurm and the run say"), ("logs", "the end of the job's log, or of ROLE's"),
                       ("cancel", "cancel the job and wait for its end")):
        look = actions.add_parser(name, help=text)
        look.add_argument("run", type=Path, metavar="RUN", help="run directory")
        if name == "logs":
            look.add_argument("role", nargs="?", metavar="ROLE", help="a process, e.g. learner-0, engine-1, collector")
            look.add_argument("-n", "--lines", type=_positive, default=20, metavar="N", help="lines (20)")


def _report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN",
                        help="a run directory, or a name in runs/; several are compared")
    parser.add_argument("--out", type=Path, metavar="FILE",
                        help="the page (RUN/report.html; of several runs comparison.html)")
    parser.add_argument("--plots", type=Path, metavar="DIR",
                        help="also write every figure as SVG and PNG, and every table as CSV")
    parser.add_argument("--step", type=int, metavar="N", help="show the timeline of step N first")


def _convert(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="conversion", required=True, metavar="CONVERSION")
    there = commands.add_parser("hf-to-megatron", help="a Hugging Face directory into a distributed checkpoint")
    _from_to(there, "Hugging Face directory")
    _layout(there)
    _dtype(there)
    _verification(there)
    back = commands.add_parser("megatron-to-hf", help="a distributed checkpoint, or one of a run, to Hugging Face")
    _from_to(back, "checkpoint, or checkpoints/step-NNNNNN of a run")
    _hf_side(back)
    _dtype(back)
    back.add_argument("--max-shard-size", default="5GB", metavar="SIZE", help="largest safetensors file (5GB)")
    _verification(back)
    other = commands.add_parser("reshard", help="a distributed checkpoint for another layout")
    _from_to(other, "checkpoint, or checkpoints/step-NNNNNN of a run")
    _layout(other)
    _hf_side(other)
    other.add_argument("--verify", action="store_true", help="compare every tensor before the result appears")
    check = commands.add_parser("verify", help="are a Hugging Face directory and a checkpoint the same model?")
    check.add_argument("source", type=Path, metavar="HF_DIR", help="Hugging Face directory")
    check.add_argument("destination", type=Path, metavar="MEGATRON_DIR", help="checkpoint")
    _hf_side(check)
    _logits(check)


def _from_to(parser: argparse.ArgumentParser, source: str) -> None:
    parser.add_argument("source", type=Path, metavar="SRC", help=source)
    parser.add_argument("destination", type=Path, metavar="DST", help="directory that is made")
    parser.add_argument("--force", action="store_true", help="replace DST if it is a model")


def _layout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tp", type=_positive, default=1, metavar="N", help="tensor-parallel size (1)")
    parser.add_argument("--pp", type=_positive, default=1, metavar="N", help="pipeline-parallel size (1)")


def _dtype(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="change the type of the weights")


def _hf_side(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--hf", type=Path, metavar="DIR",
                        help="config and tokenizer of the checkpoint, where they do not lie beside it")


def _verification(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--verify", action="store_true",
                        help="compare configs, tensors and logits before the result appears")
    _logits(parser)


def _logits(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-logits", action="store_true", help="compare no logits (they need the whole model twice)")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="prompts for the logits, one a line")


def _positive(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return host, int(port)


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
