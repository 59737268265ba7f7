from __future__ import annotations

import json

import pytest

from siri_megatron.doctor.check import Check, as_json, as_text, exit_status

GOOD, BAD = Check("a", "pass", "1"), Check("long name", "fail", "2", "mend it")
CHECKS = [GOOD, BAD, Check("c", "warn", "3", "look"), Check("d", "skip", "none")]


@pytest.mark.parametrize("status", ["warn", "fail"])
def test_every_trouble_has_a_fix(status: str) -> None:
    with pytest.raises(ValueError, match="without a fix"):
        Check("a", status, "x")  # type: ignore[arg-type]


def test_fails_decide() -> None:
    assert exit_status(CHECKS) == 1
    assert exit_status([check for check in CHECKS if check is not BAD]) == 0
    assert exit_status([]) == 0


def test_text_and_json() -> None:
    text = as_text(CHECKS)
    assert text.splitlines()[:3] == ["pass  a          1", "fail  long name  2", "                 fix: mend it"]
    assert text.endswith("1 fail, 1 warn, 1 pass, 1 skip")
    read = json.loads(json.dumps(as_json(CHECKS, {"host": "h"})))
    assert (read["host"], read["counts"]["fail"], read["checks"][1]["fix"]) == ("h", 1, "mend it")
