"""The finished questions of an evaluation, so that a killed one goes on instead of starting again.

`evaluations/<tag>.journal`: a header that says what is evaluated, then a line a question. Each line begins with the
CRC-32 of what follows. The file goes when the report is written.

Invariants:
    same_evaluation: questions count only under an equal key: weights, tag, seed, reward, questions and settings.
    prefix: cut or damaged anywhere, the journal gives the whole lines before; the rest is asked again.
    once: a question is in the journal at most once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from siri_megatron.ledger.index import checksum

ENDING = ".journal"

Question = tuple[str, int]
"""(suite, place in it)."""


class Journal:
    """Opens the journal of one evaluation; a journal of another key is replaced.

    Args:
        key: what must be equal for an answer to count.
        version: the weights, as a number of steps.
    """

    def __init__(self, path: Path, key: str, version: str) -> None:
        self.path = path
        self.done: dict[Question, list[dict[str, Any]]] = {}
        header = {"key": key, "version": version}
        lines = list(whole_lines(path))
        size = 0
        if lines and lines[0][0] == header:
            self.done = {(record["suite"], record["place"]): record["answers"] for record, _ in lines[1:]}
            size = lines[-1][1]
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("r+b" if size else "wb")
        self._file.truncate(size)
        self._file.seek(size)
        if not size:
            self._write(header)

    def append(self, question: Question, answers: list[dict[str, Any]]) -> None:
        """Keep a question's judged answers; they survive a kill of this process once the call returns."""
        if question in self.done:
            raise ValueError(f"{self.path} has {question} already")
        self._write({"suite": question[0], "place": question[1], "answers": answers})
        self.done[question] = answers

    def close(self) -> None:
        self._file.close()

    def _write(self, record: dict[str, Any]) -> None:
        text = json.dumps(record, separators=(",", ":")).encode()
        self._file.write(f"{checksum(text)} ".encode() + text + b"\n")
        self._file.flush()


def whole_lines(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """(record, end of its line) up to the first line that is torn or damaged; none without a file."""
    end = 0
    if not path.is_file():
        return
    for line in path.read_bytes().splitlines(keepends=True):
        said, _, text = line.rstrip(b"\n").partition(b" ")
        if not line.endswith(b"\n") or checksum(text) != said.decode(errors="replace"):
            return
        end += len(line)
        yield json.loads(text), end


def discard_later(directory: Path, step: int) -> None:
    """Remove journals of weights that are still to be made: a run went back to an earlier commit before `step`."""
    for path in directory.glob(f"*{ENDING}"):
        header = next(whole_lines(path), None)
        if header is None or int(header[0]["version"]) > step:
            path.unlink()
