"""The report in a real browser: it loads without errors or requests, and its controls work."""

from __future__ import annotations

import chromium
import pytest
from report_scenes import write_dataset, write_run

from deepict_dask.report import write_report

pytestmark = pytest.mark.slow

Z_GREY = "document.querySelector('[data-view=z] .grey')"
Z_MARKS = "document.querySelectorAll('[data-view=z] .marks circle').length"


@pytest.fixture(scope="module")
def browser():
    if chromium.PROGRAM is None:
        pytest.skip("no Chromium is installed (Debian: chromium-headless-shell)")
    with chromium.open_browser() as found:
        yield found


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return write_report(write_run(tmp_path_factory.mktemp("run")))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    names = ["TS_10", "TS_9", "TS_2", "<b>&\"'"]
    return write_report(write_dataset(tmp_path_factory.mktemp("dataset"), names))


def open_quietly(browser, page, **how):
    browser.errors.clear()
    browser.requests.clear()
    browser.open(page, **how)


def said(browser, page):
    """Errors and requests so far, but for the page itself and what is in it."""
    ours = page.absolute().as_uri()
    asked = [url for url in browser.requests if not url.startswith(("data:", ours))]
    return browser.errors, asked


@pytest.mark.parametrize("width", [1280, 800])
@pytest.mark.parametrize("dark", [False, True])
def test_a_report_loads_without_errors_or_requests_and_fits_the_window(
    browser, report, dataset, width, dark, tmp_path
):
    for page in (report, dataset, dataset.parent / "report" / "TS_10.html"):
        open_quietly(browser, page, width=width, dark=dark)
        assert said(browser, page) == ([], [])
        assert browser.run("document.documentElement.scrollWidth") <= width
        broken = "[...document.images].filter(i => i.src && !i.naturalWidth).length"
        assert browser.run(broken) == 0
        shot = tmp_path / f"{page.stem}.png"
        browser.screenshot(shot)
        assert shot.stat().st_size > 10_000


def test_text_can_be_read_in_light_and_dark(browser, report):
    contrast = """(() => {
      const light = (c) => {
        const [r, g, b] = c.match(/[0-9.]+/g).slice(0, 3).map(v => v / 255)
          .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      const ground = (e) => {
        for (; e; e = e.parentElement) {
          const c = getComputedStyle(e).backgroundColor;
          if (!/, 0\\)|transparent/.test(c)) return c;
        }
        return getComputedStyle(document.body).backgroundColor;
      };
      const worst = [21, ''];
      for (const e of document.querySelectorAll('body *')) {
        const own = [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
        if (!own || !e.getClientRects().length || e.closest('script')) continue;
        const style = getComputedStyle(e);
        const ink = e.closest('svg') ? style.fill : style.color;
        const [a, b] = [light(ink), light(ground(e))].sort((x, y) => y - x);
        const found = (a + 0.05) / (b + 0.05);
        if (found < worst[0]) worst.splice(0, 2, found, e.outerHTML.slice(0, 80));
      }
      return worst;
    })()"""
    for dark in (False, True):
        browser.open(report, dark=dark)
        ratio, where = browser.run(contrast)
        assert ratio >= 4.5, where  # WCAG 2.2, AA


def test_the_slider_moves_through_the_slices(browser, report):
    browser.open(report)
    first, alt = browser.run(f"{Z_GREY}.src"), browser.run(f"{Z_GREY}.alt")
    browser.run("document.querySelector('#z-slider').focus()")
    browser.press("ArrowRight", 39)
    assert browser.run(f"{Z_GREY}.src") != first
    assert browser.run(f"{Z_GREY}.alt") != alt
    assert browser.run("document.querySelector('.z-place').textContent") == "z = 13 of 0 to 23"
    browser.press("ArrowLeft", 37)
    assert browser.run(f"{Z_GREY}.src") == first


def test_picks_are_drawn_in_the_slices_that_cut_them_and_layers_can_be_hidden(browser, report):
    browser.open(report)
    move = (
        "(() => {{ const s = document.querySelector('#z-slider'); s.value = {}; "
        "s.dispatchEvent(new Event('input')); return " + Z_MARKS + "; }})()"
    )
    # particles of radius 4 at z = 6, 12 and 18
    assert [browser.run(move.format(z)) for z in (0, 4, 9, 12, 15, 23)] == [0, 1, 2, 1, 2, 0]
    browser.run(move.format(12))
    for box, selector in ((2, "circle"), (1, "img.segmentation:not([hidden])")):
        count = f"document.querySelectorAll('[data-view=z] {selector}').length"
        assert browser.run(count) == 1
        browser.run(f"document.querySelector('input[data-layer=\"{box}\"]').click()")
        assert browser.run(count) == 0


def test_the_circle_of_a_pick_lies_on_its_particle(browser, report):
    browser.open(report)
    place = """(() => {
      const at = document.querySelector('[data-view=z] .marks circle').getBoundingClientRect();
      const all = document.querySelector('[data-view=z] .stack').getBoundingClientRect();
      const [y, x] = [at.y + at.height / 2 - all.y, at.x + at.width / 2 - all.x];
      return [y / all.height, x / all.width];
    })()"""
    assert browser.run(place) == pytest.approx([20.5 / 40, 24.5 / 48], abs=0.01)


def names_shown(browser):
    rows = "[...document.querySelectorAll('tbody tr')].filter(r => !r.hidden)"
    return browser.run(f"{rows}.map(r => r.querySelector('th').textContent)")


def test_the_table_sorts_by_a_click_and_is_searched_by_words(browser, dataset):
    browser.open(dataset)
    assert names_shown(browser) == ["TS_9", "TS_2", "<b>&\"'", "TS_10"]  # failed, waiting, done
    head = "document.querySelector('thead button[data-column=\"1\"]')"
    browser.run(f"{head}.focus()")
    browser.run(f"{head}.click()")
    assert names_shown(browser) == ["<b>&\"'", "TS_2", "TS_9", "TS_10"]  # 9 before 10
    assert browser.run(f"{head}.closest('th').ariaSort") == "ascending"
    browser.run(f"{head}.click()")
    assert names_shown(browser) == ["TS_10", "TS_9", "TS_2", "<b>&\"'"]
    assert browser.run(f"{head}.closest('th').ariaSort") == "descending"
    browser.run(
        "(() => { const f = document.querySelector('.find'); f.value = 'CUT OFF'; "
        "f.dispatchEvent(new Event('input')); })()"
    )
    assert names_shown(browser) == ["TS_9"]


def test_a_link_of_the_table_leads_to_the_page_and_back(browser, dataset):
    for name in ("TS_10", "TS_9"):
        browser.open(dataset)
        link = browser.run(
            f"[...document.querySelectorAll('tbody a')].find(a => a.textContent === '{name}').href"
        )
        page = dataset.parent / "report" / f"{name}.html"
        assert link == page.as_uri()
        browser.open(page)
        assert browser.run("document.querySelector('h2').textContent").startswith(name)
        assert browser.run("document.querySelector('nav a').href") == dataset.as_uri()
