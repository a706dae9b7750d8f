"""The report's page in a real browser: it fits narrow and wide windows, sorts, filters, changes views, and prints."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fabricated_runs import beside_published, followed, study

from tombola.lab.report.page import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--virtual-time-budget=2000"),
    "--enable-logging=stderr",  # the page's console
]

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    study(folder / "runs", seeds=(0, 1))
    study(folder / "runs", seeds=(0, 1), model="a_model_with_a_rather_long_name:of_the_users_own_making")
    return write_report(
        [folder / "runs"], folder / "report.html", commands=["tombola search --out runs " + "x" * 200]
    ).html


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("board")
    return write_report([beside_published(folder / "runs")], folder / "report.html").html


@pytest.fixture(scope="module")
def curves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("curves")
    return write_report([followed(folder / "runs")], folder / "report.html").html


def look_at(page: Path, script: str, widths: Sequence[int], *, dark: bool = False) -> list[Any]:
    """What `script` returns when it is run in the page, at each of these widths."""
    assert CHROMIUM is not None
    text = page.read_text(encoding="utf-8")
    run = f"parent.postMessage([Number(name), (() => {{ {script} }})()], '*')"
    probe, frame = page.with_name("probe.html"), page.with_name("frame.html")
    probe.write_text(text.replace("</body>", f"<script>{run}</script></body>"), encoding="utf-8")
    # a frame can be narrower than the narrowest window
    frames = (
        f'<iframe src="{probe.name}" name="{n}" style="width: {width}px; height: 1000px; border: 0"></iframe>'
        for n, width in enumerate(widths)
    )
    frame.write_text(
        f"""<!doctype html><meta name="color-scheme" content="light dark"><title></title>
        <script>const said = [];
        onmessage = event => {{ said[event.data[0]] = event.data[1]; document.title = JSON.stringify(said) }}</script>
        {"".join(frames)}"""
    )
    command = [CHROMIUM, *QUIET, f"--user-data-dir={page.with_name('profile')}", "--dump-dom"]
    if dark:
        command.append("--blink-settings=preferredColorScheme=0")
    done = subprocess.run([*command, frame.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr  # no error, no warning, nothing missing
    found = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert found, done.stderr
    said: list[Any] = json.loads(html.unescape(found[1]))
    assert len(said) == len(widths)
    return said


def look(page: Path, script: str, *, dark: bool = False) -> Any:
    """What `script` returns when it is run in the page."""
    return look_at(page, script, [1000], dark=dark)[0]


@pytest.mark.parametrize("which", ["page", "board", "curves"])
def test_fits_the_window(which: str, request: pytest.FixtureRequest) -> None:
    script = """const found = [];
        const measure = () => {
          const wide = [...document.querySelectorAll("body *")].filter(e => !e.closest(".scroll, pre, svg")
            && e.getBoundingClientRect().right > innerWidth + 0.5).map(e => e.outerHTML.slice(0, 80));
          found.push([document.documentElement.scrollWidth - innerWidth, wide]); };
        measure();
        for (const n of [2, 3]) {
          for (const radio of document.querySelectorAll(`.views label:nth-of-type(${n}) input`)) radio.click();
          measure();
        }
        return [innerWidth, found, performance.getEntriesByType("resource").map(entry => entry.name)]"""
    widths = [400, 1000, 1600]
    for width, (inner, found, requests) in zip(
        widths, look_at(request.getfixturevalue(which), script, widths), strict=True
    ):
        assert inner == width
        for overflow, wide in found:
            assert wide == []
            assert overflow <= 0
        assert requests == []


def test_measured_lines_stand_out_among_published_ones(board: Path) -> None:
    found = look(
        board,
        """const rows = [...document.querySelectorAll(".board tbody tr:not(.group)")];
           return rows.map(r => [r.cells[0].textContent, Number(r.cells[2].textContent.split("\\u00a0")[0]),
             r.classList.contains("measured"), getComputedStyle(r.cells[0]).backgroundColor,
             r.parentElement.rows[0].textContent])""",
    )
    measured = [name for name, _, here, _, _ in found if here]
    assert len(measured) == 4
    assert len({colour for _, _, here, colour, _ in found if here}) == 1
    assert {colour for _, _, here, colour, _ in found if here}.isdisjoint(c for _, _, here, c, _ in found if not here)
    for title in dict.fromkeys(group for *_, group in found):
        accuracies = [accuracy for _, accuracy, _, _, group in found if group == title]
        assert accuracies == sorted(accuracies, reverse=True)


def test_sorts_by_any_column(page: Path) -> None:
    found = look(
        page,
        """const table = document.querySelector("table.results");
           const heads = [...table.tHead.rows[0].cells];
           const column = heads.findIndex(h => h.textContent === "accuracy");
           const values = c => [...table.tBodies[0].rows].map(r => r.cells[c].dataset.v);
           const out = [];
           for (let i = 0; i < 2; i++) {
             heads[column].firstElementChild.click();
             out.push([heads.map(h => h.getAttribute("aria-sort")), values(column).map(Number)]);
           }
           const shuffled = heads.findIndex(h => h.textContent === "shuffled");
           heads[shuffled].firstElementChild.click();
           heads[shuffled].firstElementChild.click();
           return [column, out, values(shuffled)]""",
    )
    column, ((up, rising), (down, falling)), with_gaps = found
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)
    assert up[column] == "ascending"
    assert down[column] == "descending"
    assert {state for place, state in enumerate(down) if place != column} == {"none"}
    numbers = [float(value) for value in with_gaps if value]
    assert numbers == sorted(numbers, reverse=True)
    assert all(value == "" for value in with_gaps[len(numbers) :])  # what is not there comes last either way


def test_filters_by_method_and_model(page: Path) -> None:
    states = look(
        page,
        """const shown = () => [...document.querySelectorAll("table.results tbody tr")].filter(r => !r.hidden)
             .map(r => [r.cells[0].textContent, r.cells[1].textContent.split(" ")[0]].join(" "));
           const chip = (group, name) => [...document.querySelectorAll(`[data-filter=${group}] button`)]
             .find(b => b.textContent === name);
           const out = [];
           const press = (group, name) => { const b = chip(group, name); b.click();
             const status = document.querySelector("[role=status]").textContent;
             const column = document.querySelector("th.model").offsetWidth > 0;
             out.push([shown(), b.getAttribute("aria-pressed"), status, column]); };
           press("method", "IMP"); press("model", "conv_digits"); press("method", "all methods");
           return out""",
    )
    (imp, pressed, status, column), (both, _, _, column_of_one), (model, _, _, _) = states
    assert (column, column_of_one) == (True, False)  # a column that says the same in every row is left out
    assert {name.split()[1] for name in imp} == {"IMP"}
    assert len(imp) == 28
    assert pressed == "true"
    assert status == "28 of 52 rows"
    assert set(both) == {"conv_digits IMP"}
    assert {name.split()[0] for name in model} == {"conv_digits"}
    assert len(model) == 26


PARTS = """const seen = part => part.getClientRects().length > 0;
    const chip = name =>
      [...document.querySelectorAll("[data-filter=method] button")].find(b => b.textContent === name);
    const methods = selector => [...new Set([...document.querySelectorAll(selector)].filter(seen)
      .map(part => part.dataset.method))].sort();
    const state = () => ({
      figures: methods("figure g[data-method]"), legend: methods(".legend li[data-method]"),
      layers: methods(".layers [data-method]"), rows: methods(".results tr[data-method]"),
      scores: [...document.querySelectorAll("figure")].some(f => seen(f) && f.textContent.includes("β·s|")),
      dense: [...document.querySelectorAll(".legend li")].filter(seen).length,
      pressed: [...document.querySelectorAll("[data-filter=method] [aria-pressed=true]")].map(b => b.textContent)});"""


def test_the_filter_reaches_figures_and_layers(curves: Path) -> None:
    before, imp, two, rigl, none = look(
        curves,
        PARTS
        + """const out = [state()];
           for (const name of ["IMP", "RigL", "IMP", "all methods"]) { chip(name).click(); out.push(state()); }
           return out""",
    )
    every = ["cs", "gmp", "imp", "rigl"]
    for part in ("figures", "legend", "layers"):
        assert before[part] == every
        assert imp[part] == ["imp"]
        assert two[part] == ["imp", "rigl"]
        assert rigl[part] == ["rigl"]
    assert [state["pressed"] for state in (imp, two, rigl)] == [["IMP"], ["IMP", "RigL"], ["RigL"]]
    assert rigl["rows"] == ["rigl"]
    assert (before["scores"], imp["scores"]) == (True, False)  # of CS alone: no empty box is left
    assert imp["dense"] == 2  # what all are held against stays
    assert none == before


def test_the_filter_hides_published_lines(board: Path) -> None:
    shown = look(
        board,
        PARTS
        + """chip("Static").click();
           const groups = [...document.querySelectorAll(".board tbody")].filter(seen);
           return [methods(".board tr[data-method]"), groups.length]""",
    )
    assert shown == [["static"], 1]


SHOWN = """[...document.querySelectorAll(".views")].map(v => [...v.querySelectorAll("figure")]
    .map(f => Number(f.getClientRects().length > 0)))"""


def test_each_figure_shows_one_view(curves: Path) -> None:
    first, second, third, names, focus = look(
        curves,
        f"""const shown = () => {SHOWN};
            const out = [shown()];
            for (const n of [2, 3]) {{
              for (const radio of document.querySelectorAll(`.views label:nth-of-type(${{n}}) input`)) radio.click();
              out.push(shown());
            }}
            const fields = [...document.querySelectorAll(".views fieldset")];
            out.push(fields.map(f => new Set([...f.querySelectorAll("input")].map(i => i.name)).size));
            out.push(fields.every(f => {{ const radio = f.querySelector(":checked"); radio.focus();
              return document.activeElement === radio; }}));
            return out""",
    )
    assert first == [[1], [1, 0], [1, 0, 0], [1, 0], [1]]
    assert second == [[1], [0, 1], [0, 1, 0], [0, 1], [1]]
    assert third == [[1], [0, 1], [0, 0, 1], [0, 1], [1]]
    assert names == [1, 1, 1]  # each control is one group of its own
    assert focus


def test_prints_the_first_views(curves: Path) -> None:
    before, printed, bar, labels = look(
        curves,
        f"""for (const radio of document.querySelectorAll(".views label:nth-of-type(2) input")) radio.click();
            const before = {SHOWN};
            const rules = [...document.styleSheets[0].cssRules].filter(rule => rule.media);
            for (const rule of rules) {{
              if (rule.conditionText === "print") rule.media.mediaText = "all";
              else if (rule.conditionText.startsWith("screen")) rule.media.mediaText = "not all";
            }}
            const seen = part => part.getClientRects().length > 0;
            const labels = [...document.querySelectorAll(".views label")].filter(seen).map(l => l.textContent);
            return [before, {SHOWN}, seen(document.querySelector(".filters")), labels]""",
    )
    assert before == [[1], [0, 1], [0, 1, 0], [0, 1], [1]]
    assert printed == [[1], [1, 0], [1, 0, 0], [1, 0], [1]]
    assert not bar
    assert labels == ["epochs spent", "test accuracy", "dropped"]  # what is shown, not what was chosen


def test_text_stands_out_on_light_and_on_dark(page: Path) -> None:
    """Contrast of at least 4.5 for words and 3 for lines and marks (WCAG 2.2, 1.4.3 and 1.4.11)."""
    script = """const style = getComputedStyle(document.documentElement);
        const luminance = name => { const hex = style.getPropertyValue(name).trim().slice(1);
          const [r, g, b] = [0, 2, 4].map(i => parseInt(hex.slice(i, i + 2), 16) / 255)
            .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
          return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
        const contrast = (a, b) => { const [x, y] = [luminance(a), luminance(b)].sort((p, q) => q - p);
          return (x + 0.05) / (y + 0.05); };
        const out = {scheme: matchMedia("(prefers-color-scheme: dark)").matches};
        for (const back of ["--page", "--panel", "--good"]) for (const ink of ["--text", "--muted", "--accent"])
          out[`${ink} on ${back}`] = contrast(ink, back) / 4.5;
        for (const ink of ["--dense", "--s1", "--s2", "--s3", "--s4", "--s5"]) out[ink] = contrast(ink, "--page") / 3;
        out.strokes = ["cs", "imp"].map(method =>
          getComputedStyle(document.querySelector(`figure g[data-method=${method}] path`)).stroke);
        return out"""
    strokes = set[str]()
    for dark in (False, True):
        found = look(page, script, dark=dark)
        assert found.pop("scheme") is dark
        strokes.update(found.pop("strokes"))
        assert {name: ratio for name, ratio in found.items() if ratio < 1} == {}
    assert len(strokes) == 4  # the figures follow
