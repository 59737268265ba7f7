"""Pages in a real headless Chromium: every figure is drawn, nothing is asked for, hostile texts stay texts."""

from __future__ import annotations

import json

import pytest
from report_runs import HOSTILE, evaluation, write_run

from siri_megatron.files import write_text
from siri_megatron.report.command import page_of, write_of_run
from siri_megatron.report.content import shown_figures
from siri_megatron.report.page import render
from siri_megatron.report.read import read_run

DRAWN = "[...document.querySelectorAll('.plot')].filter((one) => one.querySelector('svg path, svg rect')).length"
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
SHOWN = "[...document.querySelectorAll('.sample')].length"


def check(browser, page, figures: int, **look) -> None:
    """Opens without a complaint or a request, and with every figure."""
    browser.open(page, **look)
    assert browser.errors == []
    assert browser.requests == [page.resolve().as_uri()]
    assert browser.value(DRAWN) == figures
    assert browser.value("window.hacked ?? null") is None


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run's directory with its page."""
    root = tmp_path_factory.mktemp("browser") / "run"
    write_run(root)
    write_of_run(root)
    return root


def figure_count(root) -> int:
    return len(shown_figures(page_of([read_run(root)])))


def test_every_figure_is_drawn(browser, made):
    check(browser, made / "report.html", figure_count(made))
    assert browser.value("document.querySelectorAll('table').length") >= 2


def test_a_figure_that_cannot_be_drawn_is_said(browser, made, tmp_path):
    """Negative control of the checks above."""
    text = (made / "report.html").read_text().replace('"mark":{', '"mark":{"type":"nonsense","x":{"field":3},', 1)
    write_text(tmp_path / "broken.html", text.replace('"datum.seconds > 0"', '"datum. >"'))
    browser.open(tmp_path / "broken.html")
    assert browser.errors
    assert browser.value(DRAWN) < figure_count(made)


def test_the_policy_stops_what_it_should(browser, made, tmp_path):
    """Negative control: a script and a request that a text smuggled in would not run."""
    smuggled = '<script>window.hacked = 1</script><img src="http://127.0.0.1:9/x.png">'
    write_text(tmp_path / "smuggled.html", (made / "report.html").read_text().replace("</main>", smuggled + "</main>"))
    browser.open(tmp_path / "smuggled.html")
    assert len(browser.errors) == 2
    assert browser.value("window.hacked ?? null") is None


@pytest.mark.parametrize("width", [1280, 400])
def test_the_window_is_never_too_narrow(browser, made, width):
    browser.open(made / "report.html", width=width)
    assert browser.value(OVERFLOW) <= 0
    widest = "Math.max(...[...document.querySelectorAll('.plot svg')].map((one) => one.getBoundingClientRect().right))"
    assert browser.value(widest) <= width


OUTSIDE = """[...document.querySelectorAll('.plot')].flatMap((plot) => {
  const edge = plot.getBoundingClientRect().right + 1;
  const beyond = [...plot.querySelectorAll('svg text')].filter((one) => one.getBoundingClientRect().right > edge);
  return beyond.map((one) => one.textContent);
})"""
OVERLAPPING = """[...document.querySelectorAll('.plot')].flatMap((plot) => {
  const texts = plot.querySelectorAll('.role-legend-label text, .mark-text.role-mark text');
  const found = [...texts].filter((one) => one.textContent);
  const boxes = found.map((one) => one.getBoundingClientRect());
  const meet = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 &&
    Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1;
  return boxes.flatMap((one, i) => boxes.slice(i + 1).flatMap((other, j) =>
    meet(one, other) ? [`${found[i].textContent} / ${found[i + 1 + j].textContent}`] : []));
})"""


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A comparison of four runs."""
    root = tmp_path_factory.mktemp("compared")
    runs = [read_run(write_run(root / f"a-run-of-some-name-{seed}", seed=seed, cycle_steps=20 + 10 * seed).root)
            for seed in range(4)]
    page = page_of(runs)
    write_text(root / "comparison.html", render(page))
    return root / "comparison.html", len(shown_figures(page))


@pytest.mark.parametrize("width", [1280, 400])
def test_no_text_of_a_figure_is_cut_or_covered(browser, made, compared, width):
    for page in (made / "report.html", compared[0]):
        browser.open(page, width=width)
        assert browser.value(OUTSIDE) == []
        assert browser.value(OVERLAPPING) == []


def test_dark_mode(browser, made):
    background = "getComputedStyle(document.body).backgroundColor"
    ink = "getComputedStyle(document.querySelector('.plot svg text')).fill"
    browser.open(made / "report.html")
    light = browser.value(f"[{background}, {ink}]")
    browser.look(dark=True)  # without loading the page again
    dark = browser.value(f"[{background}, {ink}]")
    assert light == ["rgb(255, 255, 255)", "rgb(29, 33, 41)"]
    assert dark == ["rgb(20, 23, 28)", "rgb(228, 231, 236)"]


def search(browser, query: str, outcome: str = "") -> int:
    browser.value(f"document.getElementById('query').value = {json.dumps(query)}")
    browser.value(f"document.getElementById('outcome').value = {json.dumps(outcome)}")
    browser.value("document.getElementById('query').dispatchEvent(new Event('input'))")
    return browser.value(SHOWN)


def test_search(browser, made):
    browser.open(made / "report.html")
    assert search(browser, "") == 8
    assert search(browser, "WHAT is 3 +") == 1
    assert browser.value("document.querySelector('mark').textContent") == "What is 3 +"
    assert browser.value("document.getElementById('count').textContent") == "1 of 8 prompts"
    assert search(browser, "nothing like it") == 0
    wrong = search(browser, "", "wrong")
    assert 0 < wrong < 9
    assert browser.value("[...document.querySelectorAll('.sample')].every((one) => one.querySelector('.wrong'))")


def test_the_timeline_shows_the_step_that_is_chosen(browser, made):
    browser.open(made / "report.html")
    select = "document.querySelector('#plot-timeline select')"
    labels = browser.value(f"[...{select}.options].map((one) => one.textContent)")
    assert any("typical" in label for label in labels)
    bars = "[...document.querySelectorAll('#plot-timeline .mark-rect path')].map((one) => one.ariaLabel).join()"
    before = browser.value(bars)
    browser.value(f"{select}.selectedIndex = 1; {select}.dispatchEvent(new Event('change'))")
    browser.wait_for(f"{bars} !== {json.dumps(before)}")


def test_hostile_texts_stay_texts(browser, tmp_path):
    paths = write_run(tmp_path / "run", name=HOSTILE[0])
    for number, text in enumerate(HOSTILE):
        one = evaluation(text, 0.5, 100)
        one["examples"][0] |= {"prompt": f"prompt {text}", "response": text, "answer": text, "outcome": text}
        (paths.evaluations / f"x{number}.json").write_text(json.dumps(one))
    write_of_run(paths.root)
    check(browser, paths.report, figure_count(paths.root))
    assert search(browser, "<img src=x") > 0
    assert browser.value("document.querySelector('h1').textContent").startswith("</script><script>")
    assert "␀" in browser.value("document.body.textContent")


def test_two_thousand_steps(browser, tmp_path):
    paths = write_run(tmp_path / "run", steps=2000, cycle_steps=640)
    write_of_run(paths.root)
    check(browser, paths.report, figure_count(paths.root))
    longest = "Math.max(...[...document.querySelectorAll('.plot svg path')].map((one) => one.getAttribute('d').length))"
    assert browser.value(longest) < 40_000


def test_a_run_that_is_going_on_and_torn(browser, tmp_path):
    paths = write_run(tmp_path / "run", steps=3, evaluations=1, verdict=False, spans=False)
    with paths.metrics.open("a") as file:
        file.write('{"step": 3, "accura')
    write_of_run(paths.root)
    check(browser, paths.report, figure_count(paths.root))
    assert "still running, or killed" in browser.value("document.querySelector('.state').textContent")


def test_no_evaluations_and_nothing_known(browser, tmp_path):
    paths = write_run(tmp_path / "run", steps=1, evaluations=0)
    paths.metrics.write_text('{"step": 0, "loss": null}\n')
    write_of_run(paths.root)
    check(browser, paths.report, figure_count(paths.root))


def test_comparison(browser, compared):
    check(browser, *compared)
    assert browser.value("document.querySelector('#result tbody').rows.length") == 4


def test_nothing_black_in_the_dark(browser, made, compared):
    """Legends, axes and texts take the page's ink; a fixed black would vanish."""
    black = ("[...document.querySelectorAll('.plot svg *')].filter((one) => ['fill', 'stroke'].some((name) => "
             "['rgb(0, 0, 0)', 'black', '#000', '#000000'].includes(one.getAttribute(name)))).length")
    for page in (compared[0], made / "report.html"):
        browser.open(page, dark=True)
        assert browser.value(black) == 0
