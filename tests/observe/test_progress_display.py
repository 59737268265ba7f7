from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from siri_megatron.observe.progress import Progress, panel
from siri_megatron.observe.progress_state import ProgressState, event_line
from siri_megatron.observe.render import text


def state():
    return ProgressState("tiny", steps=72, cycles=3, l_min=48, l_max=128)


def record(step, **changes):
    return {"step": step, "phase": "compression", "cycle": 0, "cap": 108, "accuracy": 0.7125, "truncated": 0.03,
            "mean_tokens": 61.26, "generation_tokens_per_s": 8123.0, "training_tokens_per_s": 912.0, "push_s": 0.214,
            "step_s": 2.0, **changes}


def shown(console):
    return console.file.getvalue()


@pytest.fixture
def plain():
    return Console(file=StringIO(), force_terminal=False, width=40)


@pytest.fixture
def terminal():
    return Console(file=StringIO(), force_terminal=True, width=100)


def test_a_closed_loop_promises_no_number_of_cycles():
    known = ProgressState("tiny", steps=72, cycles=None, l_min=48, l_max=128)
    assert known.headline() == "cap 128 → 48"
    known.record(record(3))
    assert known.headline() == "compression ▼  cycle 1  cap 108 [48..128]"


def test_latest_wins():
    known = state()
    for step in (0, 1, 2, 1):
        known.record(record(step, accuracy=step / 10 + len(known.records)))
    assert [kept["step"] for kept in known.records] == [0, 1]
    assert known.last["accuracy"] == 0.1 + 3
    assert known.done == 2


def test_eta_from_recent_steps():
    known = state()
    assert known.eta_s is None
    for step in range(40):
        known.record(record(step, step_s=100.0 if step < 16 else 2.0))
    assert known.eta_s == 32 * 2.0


def test_plain_lines(plain):
    """No terminal: a line a step in full width, a line an event, each wording of a status once."""
    with Progress(state(), plain) as progress:
        for status in ("starting engines", "generating 3/128", "generating 4/128", "starting engines"):
            progress.status(status)
        progress.record(record(3))
        progress.event({"ts": 0.0, "kind": "zero_signal", "step": 3, "message": "97% truncated"})
    assert shown(plain).splitlines() == [
        "starting engines", "generating 3/128",
        "step 4/72  compression ▼  cycle 1/3  cap 108 [48..128]  accuracy 71.2%  truncated 3.0%  tokens 61.3  "
        "generation 8.1k/s  training 912/s  push 0.21 s  step 2.0 s  ETA 2:16",
        "zero_signal: 97% truncated"]
    assert "\x1b" not in shown(plain)


def test_resuming_is_silent(plain):
    with Progress(state(), plain) as progress:
        progress.resume([record(0), record(1)])
    assert shown(plain) == ""
    assert progress.state.done == 2


def test_a_terminal_shows_everything_at_once():
    known = state()
    for step in range(3):
        known.record(record(step, phase="expansion", cap=48 + step))
    known.event({"ts": 0.0, "kind": "commit", "step": 2, "seconds": 0.12345, "tag": None})
    known.status = "generating 34/128"
    page = text(panel(known))
    for part in ("siri · tiny", "expansion ▲", "cycle 1/3", "cap 50 [48..128]", "step 3/72", "accuracy 71.2%",
                 "truncated 3.0%", "tokens 61.3", "generation 8.1k/s", "training 912/s", "push 0.21 s", "ETA 2:18",
                 "▁▅█", "commit at step 2: seconds 0.1235", "generating 34/128"):
        assert part in page


def test_before_the_first_step():
    page = text(panel(state()))
    assert "cap 128 → 48, 3 cycles" in page
    assert "step 0/72" in page


def test_the_terminal_is_restored(terminal):
    """The cursor is hidden while live and comes back, also after an exception; close may come twice."""
    progress = Progress(state(), terminal)
    with pytest.raises(KeyboardInterrupt):
        interrupt(progress)
    progress.close()
    assert shown(terminal).rfind("\x1b[?25h") > shown(terminal).rfind("\x1b[?25l") >= 0


def interrupt(progress):
    with progress:
        progress.status("starting engines")
        raise KeyboardInterrupt


def test_markup_is_not_interpreted(plain):
    with Progress(state(), plain) as progress:
        progress.event({"ts": 0.0, "kind": "failure", "step": None, "message": "[/] [red]x[/red]"})
    assert shown(plain) == "failure: [/] [red]x[/red]\n"


@pytest.mark.parametrize(("event", "line"), [
    ({"ts": 1.0, "kind": "run_started", "step": None}, "run_started"),
    ({"ts": 1.0, "kind": "export", "step": 12, "tag": "iter1-compressed", "seconds": 1.0},
     "export at step 12: tag iter1-compressed, seconds 1"),
])
def test_event_lines(event, line):
    assert event_line(event) == line
