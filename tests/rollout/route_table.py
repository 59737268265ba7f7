"""Prints every route of the server that an engine runs, as vLLM builds it: [kind, path, methods] as JSON lines.

    VLLM_SERVER_DEV_MODE=1 python route_table.py [arguments of the server]

A process of its own; the application is built as the server builds it, without an engine behind it.
"""

from __future__ import annotations

import json
import sys

from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

arguments = make_arg_parser(FlexibleArgumentParser()).parse_args(sys.argv[1:])
for route in build_app(arguments, ("generate",)).routes:
    print(json.dumps([type(route).__name__, getattr(route, "path", ""), sorted(getattr(route, "methods", None) or [])]))
