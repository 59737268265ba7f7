"""A data set of the Hugging Face hub, fetched by a child process: `python -m siri_megatron.data.hub ORDER FILE`.

The child keeps the `datasets` library (and what it imports) out of this process, and can be ended at a deadline;
the library's own retries cannot. What it fetched stays in the hub's cache (HF_HOME), so later calls may be offline.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from siri_megatron.config import DatasetConfig
from siri_megatron.data.tables import Record, arrow_batches, table_records
from siri_megatron.errors import DataError

PACKAGE_ROOT = Path(__file__).resolve().parents[2]
ORPHAN_S = 5
"""A child whose parent was killed outlives its deadline by this."""


def read_hub(table: DatasetConfig, *, timeout_s: float, offline: bool) -> Iterator[Record]:
    """The rows of a split.

    Args:
        table: path, name, split and revision (resolved).
        offline: take it from the cache, without a question to the hub.

    Raises:
        DataError: it cannot be had in time; says what was tried and what helps.
    """
    with tempfile.TemporaryDirectory(prefix="siri-hub-") as place:
        file = Path(place) / "rows.arrow"
        _fetch(table, file, timeout_s, offline)
        stem = f"{str(table.path).rpartition('/')[2]}-{table.split}"
        yield from table_records(arrow_batches(file), f"{table.path} {table.split}", stem)


def _fetch(table: DatasetConfig, file: Path, timeout_s: float, offline: bool) -> None:
    if Path(str(table.path)).exists():
        raise _failed(table, f"is the name of a directory here as well as a name on the hub: write ./{table.path} "
                             "for the directory")
    order = json.dumps([table.path, table.name, table.split, table.revision, timeout_s + ORPHAN_S])
    path = [str(PACKAGE_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path)} | ({"HF_HUB_OFFLINE": "1"} if offline else {})
    try:
        done = subprocess.run([sys.executable, "-m", "siri_megatron.data.hub", order, str(file)], env=environment,
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        raise _failed(table, f"did not come within data.hub_timeout_s={timeout_s:g}") from None
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise _failed(table, f"cannot be had: {said[-1][:500] if said else f'exit status {done.returncode}'}")


def _failed(table: DatasetConfig, what: str) -> DataError:
    from huggingface_hub import constants  # where its cache is: it has its own rules

    name = f"{table.path}" + (f" ({table.name})" if table.name else "") + f", split {table.split}"
    return DataError(f"data set {name} {what}", rule="a hub data set is fetched before anything starts, or lies in "
                     f"the cache (HF_HOME={constants.HF_HOME})",
                     fix="check name, split and network; on a machine without one copy HF_HOME from a machine that "
                         f"has run `hf download --repo-type dataset {table.path}`, or set path to a local file or "
                         "directory")


def main(order: str, file: str) -> None:
    """The child: write the split as one Arrow file."""
    path, name, split, revision, seconds = json.loads(order)
    signal.alarm(int(seconds) + 1)
    sys.excepthook = lambda kind, error, _: print(f"{kind.__name__}: {error}".replace("\n", " "), file=sys.stderr)
    import datasets
    import pyarrow as pa

    datasets.disable_progress_bars()
    rows = datasets.load_dataset(path, name, split=split, revision=revision).with_format("arrow")
    with pa.OSFile(file, "wb") as sink, pa.ipc.new_stream(sink, rows.features.arrow_schema) as writer:
        for batch in rows.iter(batch_size=1000):
            writer.write_table(batch)


if __name__ == "__main__":
    main(*sys.argv[1:])
