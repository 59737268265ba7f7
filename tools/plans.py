"""Write what `siri plan` prints into docs/planning.md: each fenced block that begins with `$ siri plan ...`.

    python tools/plans.py           run the commands and write their output
    python tools/plans.py --check   exit 1 if the page is out of date

Blocks that begin with `$ siri plan` and end with `(measured)` in that line are left as they are: they show a machine.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import sys
from pathlib import Path

from siri_megatron import cli

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "planning.md"
BLOCK = re.compile(r"^```\n\$ (siri plan [^\n]*)\n.*?^```$", re.MULTILINE | re.DOTALL)
MEASURED = "(measured)"


def written(page: str) -> str:
    """The page with the output of its commands."""
    return BLOCK.sub(lambda found: found[0] if found[1].endswith(MEASURED) else block(found[1]), page)


def block(command: str) -> str:
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        if status := cli.main(shlex.split(command)[1:]):
            raise SystemExit(f"{command}: exit status {status}")
    lines = (line.rstrip() for line in output.getvalue().splitlines())
    return "\n".join(["```", f"$ {command}", *(line for line in lines if line), "```"])


def main(check: bool) -> int:
    os.chdir(ROOT)
    page = PAGE.read_text()
    fresh = written(page)
    if check:
        print("docs/planning.md is up to date" if fresh == page else "out of date: run `python tools/plans.py`")
        return int(fresh != page)
    PAGE.write_text(fresh)
    return 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv))
