"""The page in a real browser, opened from disk with the network off: what it shows, and that all of it can be reached."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from layerlens.report import report_data, write_report
from layerlens.results import Run, TrainingLog
from tests.support.browser import DRAWN, Page
from tests.support.synthetic_runs import make_run

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
ENTER, RIGHT, DOWN, TAB, SPACE, HOME = "\ue007", "\ue014", "\ue015", "\ue004", " ", "\ue011"


def number(value: float, decimals: int | None = None) -> str:
    """A number as the page writes it."""
    text = f"{value:.{decimals}f}" if decimals is not None else str(float(f"{value:.4g}")).removesuffix(".0")
    return text.replace("-", "−")


def hover(tab: Page, figure: str, curve: int, point: int) -> str:
    """What a chart says when the pointer is on a point of a curve."""
    texts = tab.js(f"document.querySelector('#box-{figure} .chart').data.filter(trace => trace.text)[{curve}].text")
    tab.driver.execute_script(f"document.querySelector('#box-{figure}').scrollIntoView({{block: 'center'}})")
    place = tab.js(
        f"""(() => {{
          const chart = document.querySelector('#box-{figure} .chart'), trace = chart.data.filter(trace => trace.text)[{curve}];
          const {{ xaxis, yaxis }} = chart._fullLayout, box = chart.getBoundingClientRect();
          return [box.left + xaxis._offset + xaxis.l2p(trace.x[{point}]), box.top + yaxis._offset + yaxis.l2p(trace.y[{point}])];
        }})()"""
    )
    tab.driver.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": place[0], "y": place[1]})
    tab.wait(f"document.querySelector('#box-{figure} .hoverlayer').textContent !== ''")
    shown = tab.js(f"document.querySelector('#box-{figure} .hoverlayer').textContent")
    assert texts
    return str(shown)


def test_page_opens_from_disk_without_a_word_or_a_request(tab: Page, page_file: Path) -> None:
    for part in ("overview", "text", "training"):
        tab.open(page_file, f"tab={part}")
        assert tab.js(f"document.getElementById('{part}').textContent.length") > 500
    assert tab.messages() == []
    assert set(tab.requests()) == {page_file.resolve().as_uri()}
    assert "plotly.js v" in tab.js("document.querySelector('footer').textContent")


def test_pointing_at_a_chart_gives_the_runs_number_and_interval(tab: Page, page_file: Path, bundled_runs: list[Run]) -> None:
    tab.open(page_file)
    mean = bundled_runs[0].mean("kl_to_final").sel(site="resid_post", layer=4)
    said = hover(tab, "distance", 0, 3)
    assert "layer 4 of 12" in said
    assert f"{number(float(mean['mean']))} ({number(float(mean['low']))} to {number(float(mean['high']))})" in said
    assert bundled_runs[0].model in said


def test_tables_behind_figures_hold_the_numbers_and_sort(tab: Page, page_file: Path, bundled_runs: list[Run]) -> None:
    tab.open(page_file)
    tab.find("#box-change details summary").click()
    tab.wait("document.querySelector('#box-change tbody tr') !== null")
    change = bundled_runs[0].mean("entropy_change").sel(module="ffn")
    rows = tab.js("[...document.querySelectorAll('#box-change tbody tr')].map(row => [...row.children].map(cell => cell.textContent))")
    assert len(rows) == 24
    for row, layer in zip(rows[:12], range(1, 13), strict=True):
        assert row[1] == str(layer)
        assert row[-1].startswith(number(float(change["mean"].sel(layer=layer))))
    head = "#box-change thead th:last-child button"
    values = (
        "[...document.querySelectorAll('#box-change tbody tr td:last-child')].map(cell => parseFloat(cell.textContent.replace('−', '-')))"
    )
    for falls in (False, True):
        tab.driver.execute_script("arguments[0].click()", tab.find(head))
        assert tab.js(values) == sorted(tab.js(values), reverse=falls)
    assert tab.js("document.querySelector('#box-change thead th:last-child').getAttribute('aria-sort')") == "descending"


def test_axis_and_table_name_the_metric_that_is_shown(tab: Page, page_file: Path) -> None:
    tab.open(page_file)
    said = "KL divergence to the final policy<br>mean at resid_post [nats]"
    assert tab.js("document.querySelector('#box-distance .chart').layout.yaxis.title.text") == said
    tab.find("#box-distance details summary").click()
    tab.wait("document.querySelector('#box-distance tbody tr') !== null")
    assert "KL divergence to the final policy [nats]" in tab.js("document.querySelector('#box-distance thead th:last-child').textContent")
    drawn = "document.querySelector('#box-metrics .chart').layout.yaxis.title.text"
    name, unit = tab.js(drawn).split("<br>mean ")
    assert f"{name} {unit}" in tab.js("document.querySelector('#box-metrics .picks').textContent")


def test_measures_are_written_as_the_command_line_writes_them(tab: Page, page_file: Path, bundled_runs: list[Run]) -> None:
    tab.open(page_file)
    [late] = [row for row in report_data(bundled_runs)["overview"]["comparison"]["rows"] if row[0].startswith("KL left")]
    shown = tab.js("[...document.querySelectorAll('#overview article .table tr')].map(row => [...row.cells].map(cell => cell.textContent))")
    assert [late[0], *(cell["text"] for cell in late[1:])] in shown
    assert "%" in late[1]["text"]


def test_pointing_at_a_token_shows_its_policy_through_the_layers(tab: Page, page_file: Path, bundled_runs: list[Run]) -> None:
    tab.open(page_file, "tab=text&layer=8")
    run = bundled_runs[0]
    rows = np.flatnonzero(run.data["sample"].values == 0)
    token = int(run.data["response_start"].values[0]) + 3
    row = {str(name): values.isel(token=rows[token - 1]) for name, values in run.data.data_vars.items() if "token" in values.dims}
    tab.point(f"#chip-0-0-{token}")
    tab.wait(f"document.querySelector('aside .scroll').dataset.token === '{token}'")
    names = dict(zip(run.data["named_token_id"].values.tolist(), run.data["named_token_text"].values.tolist(), strict=True))
    for layer in (1, 8, 12):
        at = {name: values.sel(layer=layer, site="resid_post") for name, values in row.items() if "site" in values.dims}
        line = f"document.querySelector('.path tr[data-layer=\"{layer}\"]')"
        for metric in ("entropy", "logp_next", "kl_to_final"):
            shown = tab.js(f"{line}.querySelector('[data-metric={metric}]').textContent")
            decimals = len(shown.partition(".")[2])
            assert decimals >= 2
            assert abs(float(shown.replace("−", "-")) - float(at[metric])) <= 0.5001 * 10**-decimals
        tops = tab.js(f"[...{line}.querySelectorAll('.top')].map(top => top.textContent)")
        for rank, top in enumerate(tops):
            share = float(at["top_probs"][rank])
            assert abs(float(top.rpartition(" ")[2].removesuffix("%")) - 100 * share) < 0.0501
            text = names[int(at["top_ids"][rank])]
            assert top.startswith(text if text.strip(" ") else "␣" * len(text))
        assert len(tops) == 3
    assert tab.js("document.querySelector('.path tr.here').dataset.layer") == "8"
    chip = float(tab.js(f"document.getElementById('chip-0-0-{token}').dataset.value"))
    assert chip == pytest.approx(float(row["entropy"].sel(layer=8, site="resid_post")), abs=0.0051)
    took = []
    for other in (token + 1, token + 2, token + 3):  # the first one also decoded the sample
        tab.point(f"#chip-0-0-{other}")
        tab.wait(f"document.querySelector('aside .scroll').dataset.token === '{other}'")
        took.append(tab.js("LL.pointerMs"))
    assert min(took) < 100


def test_sliders_colour_by_any_layer_site_and_metric(tab: Page, page_file: Path, bundled_runs: list[Run]) -> None:
    tab.open(page_file, "tab=text")
    rows = np.flatnonzero(bundled_runs[0].data["sample"].values == 0)
    chips = "[...document.querySelectorAll('.chip')].map(chip => chip.dataset.value)"
    grounds = "[...document.querySelectorAll('.chip')].map(chip => chip.style.background)"
    seen = set()
    for keys, metric, layer, site in ((HOME, "entropy", 1, "resid_post"), (RIGHT, "entropy", 2, "resid_post")):
        tab.find("#layer").click() if keys == HOME else None
        tab.keys(keys)
        tab.wait(f"document.getElementById('text').dataset.drawn.endsWith('{metric}.{site}.{layer}')")
        expected = bundled_runs[0].data[metric].isel(token=rows[:-1]).sel(layer=layer, site=site).values
        assert [float(value) for value in tab.js(chips)[1:]] == pytest.approx(expected, abs=0.0051)
        seen.add(tuple(tab.js(grounds)))
    tab.driver.execute_script("document.getElementById('site').focus()")
    tab.keys(HOME)
    tab.wait("document.getElementById('text').dataset.drawn.endsWith('entropy.resid_pre.2')")
    tab.choose("colour by", "KL divergence to the final policy")
    tab.wait("document.getElementById('text').dataset.drawn.endsWith('kl_to_final.resid_pre.2')")
    expected = bundled_runs[0].data["kl_to_final"].isel(token=rows[:-1]).sel(layer=2, site="resid_pre").values
    assert [float(value) for value in tab.js(chips)[1:]] == pytest.approx(expected, abs=0.0051)
    seen.add(tuple(tab.js(grounds)))
    assert len(seen) == 3
    tab.wait("location.hash.includes('site=resid_pre') && location.hash.includes('layer=2')")


def test_pins_of_two_models_are_compared_and_kept_in_the_address(tab: Page, page_file: Path, bundled_runs: list[Run]) -> None:
    tab.open(page_file, "tab=text&beside=1")
    assert tab.js("document.querySelectorAll('.pane:not([hidden])').length") == 2
    tokens = [int(run.data["response_start"].values[0]) + 2 for run in bundled_runs]
    for run, token in enumerate(tokens):
        tab.find(f"#chip-{run}-0-{token}").click()
        tab.wait(f"document.getElementById('chip-{run}-0-{token}').classList.contains('pinned')")
    curves = "document.querySelector('#box-pins .chart').data.filter(trace => trace.text).map(trace => trace.y)"
    tab.wait("document.querySelectorAll('.pins li').length === 2 && document.querySelector('#box-pins .chart').data?.length >= 2")
    tab.wait(f"location.hash.includes('1.0.{tokens[1]}')")
    address = tab.driver.current_url
    tab.driver.get("about:blank")
    tab.driver.get(address)
    tab.wait("document.getElementById('box-pins')?.dataset.drawn === 'yes'")
    for run, token, curve in zip(bundled_runs, tokens, tab.js(curves), strict=True):
        rows = np.flatnonzero(run.data["sample"].values == 0)
        expected = run.data["entropy"].isel(token=rows[token - 1]).sel(site="resid_post").values
        assert curve == pytest.approx(expected, abs=0.0051)
    tab.find(".pins li button:last-child").click()
    tab.wait("document.querySelectorAll('.pins li').length === 1")


def test_answers_are_marked_and_filtered(tab: Page, page_file: Path, bundled_runs: list[Run]) -> None:
    right = bundled_runs[0].correct("arithmetic")
    tab.open(page_file, "tab=text")
    assert tab.js("document.querySelector('.pane h3').textContent").endswith("✓ right" if right[0] else "✗ wrong")
    for name, wanted in (("right", True), ("wrong", False)):
        tab.open(page_file, f"tab=text&filter={name}")
        options = tab.js("[...document.querySelectorAll('[data-control=sample] option')].map(option => option.value)")
        assert options == [str(at) for at in np.flatnonzero(right == wanted)]


def test_grid_moves_with_keys_zooms_and_names_the_cell(tab: Page, page_file: Path, bundled_runs: list[Run]) -> None:
    tab.open(page_file, "tab=text")
    tab.driver.execute_script("document.querySelector('.grid').focus()")
    tab.keys(RIGHT, RIGHT, RIGHT, DOWN)
    tab.wait("document.getElementById('cell').textContent.includes('layer 11')")
    entropy = bundled_runs[0].data["entropy"].isel(token=1).sel(layer=11, site="resid_post")
    assert number(float(entropy), 2) in tab.js("document.getElementById('cell').textContent")
    before = tab.js("document.querySelector('.space').clientWidth")
    tab.keys("+")
    tab.wait(f"document.querySelector('.space').clientWidth > {before}")
    tab.keys(ENTER)
    tab.wait("document.querySelectorAll('.pins li').length === 1 && document.querySelector('#layer').value === '10'")


def test_training_plays_snapshot_by_snapshot(tab: Page, page_file: Path, training: TrainingLog) -> None:
    tab.open(page_file, "tab=training&step=0")
    shown = "document.querySelector('#box-profile .chart').data.filter(trace => trace.text)[0].y"
    for step in (0, 20):
        tab.js(f"LL.state.set({{ step: {step} }})")
        tab.wait(f"document.getElementById('training').dataset.step === '{step}'")
        row = training.monitor.set_index("step").loc[step]
        assert tab.js(shown) == pytest.approx([row[f"entropy/layer_{layer}"] for layer in range(1, 13)], rel=1e-5)
    tab.driver.execute_script("document.getElementById('step').focus()")
    tab.keys(RIGHT)
    tab.wait("document.getElementById('training').dataset.step === '25'")
    tab.find(".play").click()
    tab.wait("document.getElementById('training').dataset.step === '40'")
    tab.wait("document.querySelector('.play').textContent.includes('Play')")
    reward = tab.js("document.querySelector('#box-step-reward .chart').data.filter(trace => trace.text)[0].y")
    assert reward == pytest.approx(training.log["reward"].tolist(), rel=1e-5)
    ticks = [tab.js(f"LL.whole([{{ x: [0, 1, {last}] }}]).dtick ?? null") for last in (3, 40)]
    assert ticks == [1, None], "no half steps, which would be written as whole ones"


def test_keyboard_alone_reaches_tabs_choices_tokens_and_tables(tab: Page, page_file: Path) -> None:
    tab.open(page_file)
    reached = []
    for _ in range(6):
        tab.keys(TAB)
        reached.append(tab.js("document.activeElement.textContent"))
    assert reached[0] == "Overview"
    tab.driver.execute_script("document.getElementById('tab-overview').focus()")
    tab.keys(RIGHT)
    tab.wait("document.getElementById('text').dataset.drawn")
    assert tab.js("document.activeElement.id") == "tab-text"
    seen: list[str] = []
    for _ in range(40):
        tab.keys(TAB)
        seen.append(tab.js("document.activeElement.getAttribute('role') || document.activeElement.id || document.activeElement.tagName"))
        if seen[-1] == "listbox":
            break
    assert {"SELECT", "layer", "site"} <= set(seen)
    tab.keys(RIGHT, RIGHT, RIGHT)
    tab.wait("document.querySelector('.chip.current')?.dataset.token === '2'")
    tab.keys(DOWN, ENTER)
    tab.wait("document.querySelectorAll('.chip.pinned').length === 1")


def test_page_is_narrow_dark_and_without_serious_faults_of_access(tab: Page, page_file: Path) -> None:
    axe = pytest.importorskip("axe_core_python.selenium").Axe()
    for width, theme, parts in ((390, "dark", ("overview", "text", "training")), (1440, "light", ("overview",))):
        tab.size(width)
        tab.open(page_file, f"tab={parts[0]}&theme={theme}&pins=0.0.25")
        for part in parts:
            tab.js(f"document.getElementById('tab-{part}').click()")
            tab.wait(f"document.querySelector('#{part}:not([hidden])') !== null && {DRAWN}")
            assert tab.js("document.documentElement.scrollWidth") <= width, part
            ground = tab.js("getComputedStyle(document.body).backgroundColor")
            assert (sum(map(int, ground[4:-1].split(","))) < 200) == (theme == "dark")
            if part == "overview" and theme == "dark":
                continue  # its parts are those of the others
            found = axe.run(tab.driver, options={"resultTypes": ["violations"]})["violations"]
            serious = [(each["id"], each["nodes"][0]["html"][:200]) for each in found if each["impact"] in ("serious", "critical")]
            assert serious == []


def test_figures_and_tables_are_saved(tab: Page, page_file: Path, tmp_path: Path) -> None:
    tab.open(page_file)
    tab.driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    for name in ("PNG", "SVG"):
        tab.js(f"document.querySelector('#box-flow [aria-label^=\"Save as {name}\"]').click()")
    tab.js("document.querySelector('#box-flow details').open = true")
    tab.wait("document.querySelector('#box-flow .table') !== null")
    tab.js("document.querySelector('#box-flow .table .buttons button:last-child').click()")
    end = time.monotonic() + 20
    while len(list(tmp_path.glob("layerlens-flow.*[gv]"))) < 3 and time.monotonic() < end:
        time.sleep(0.05)
    assert (tmp_path / "layerlens-flow.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (tmp_path / "layerlens-flow.svg").read_bytes()[:200]
    assert (tmp_path / "layerlens-flow.csv").read_text().startswith("curve,layer")
    assert tab.messages() == []


def test_marks_of_layers_do_not_widen_the_axis_and_a_lone_curve_is_named(tab: Page, tmp_path: Path) -> None:
    early = make_run([0.5] * 3 + [-0.2] * 21, name="a model of a long name that asks for much room")
    late = make_run([0.5] * 10 + [-0.2] * 2, name="the other")
    late = Run(late.data.drop_vars("kl_to_final"), late.manifest)
    tab.open(write_report([early, late], out=tmp_path / "page.html"))
    chart = "document.querySelector('#box-change .chart')"
    low, high = tab.js(f"{chart}._fullLayout.xaxis.range")
    assert -0.05 < low < 1 / 24
    assert 1 < high < 1.05
    notes = tab.js(f"{chart}.layout.annotations.map(note => [note.x, note.xanchor])")
    assert len(notes) == 2
    assert all(anchor == ("left" if x < 0.5 else "right") for x, anchor in notes)
    assert {anchor for _, anchor in notes} == {"left", "right"}
    assert tab.js("document.querySelector('#box-distance .chart').querySelector('.legendtext').textContent") == early.model


def test_hostile_texts_stay_texts(tab: Page, bundled_runs: list[Run], tmp_path: Path) -> None:
    data = bundled_runs[0].data.copy()
    texts = data["named_token_text"].values.astype(object)
    texts[:] = HOSTILE
    data = data.assign_coords(
        named_token_text=("named_token", texts),
        token_text=("token", np.full(data.sizes["token"], HOSTILE, dtype=object)),
        sample_id=("sample", np.array([f"{HOSTILE}{at}" for at in range(data.sizes["sample"])], dtype=object)),
        ground_truth=("sample", np.full(data.sizes["sample"], HOSTILE, dtype=object)),
    )
    info = bundled_runs[0].manifest
    hostile = Run(data, replace(info, model=replace(info.model, name=HOSTILE)))
    file = write_report([hostile, bundled_runs[1]], out=tmp_path / "hostile.html")
    for part in ("overview", "text"):
        tab.open(file, f"tab={part}&pins=0.0.25")
        assert tab.js("document.querySelectorAll('img[src=x]').length") == 0
        assert tab.js("[...document.scripts].every(script => !script.textContent.startsWith('alert'))")
    tab.point("#chip-0-0-25")
    tab.wait("document.querySelector('.path .top code') !== null")
    assert tab.js("document.getElementById('chip-0-0-25').textContent") == HOSTILE
    assert tab.js("document.querySelector('.path .top code').textContent") == HOSTILE
    assert HOSTILE in tab.js("document.querySelector('.pins .link').textContent")
    assert tab.messages() == []


def test_paper_is_white_and_charts_fit_it(tab: Page, page_file: Path) -> None:
    tab.open(page_file, "theme=dark")
    chart = "document.querySelector('#box-flow .chart')"
    wide = tab.js(f"{chart}._fullLayout.width")
    tab.js("dispatchEvent(new Event('beforeprint'))")
    assert tab.js("document.documentElement.dataset.theme") == "light"
    assert tab.js(f"{chart}._fullLayout.width") == 680
    assert tab.js(f"{chart}._fullLayout.paper_bgcolor") == "#ffffff"
    tab.js("dispatchEvent(new Event('afterprint'))")
    tab.wait(f"{chart}._fullLayout.width === {wide}")
    assert tab.js("document.documentElement.dataset.theme") == "dark"
