"""The pages that `make docs` builds: complete, quiet, asking no other host, and true."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import chromium
import numpy as np
import pytest
import yaml
from PIL import Image

from deepict_dask.io.endings import ENDINGS
from deepict_dask.io.picks import FORMATS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))
PICTURES = sorted(path.stem for path in (DOCS / "pictures").glob("*.png"))
NEEDED = ("mkdocs", "material", "mkdocstrings")


def build(config, into):
    """Build the site of a config; return what the program said."""
    absent = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if absent:
        pytest.skip(f"{', '.join(absent)} not installed (extra: docs)")
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(config), "-d", str(into)],
        capture_output=True, text=True, timeout=300, cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    into = tmp_path_factory.mktemp("site")
    built = build(ROOT / "mkdocs.yml", into)
    assert built.returncode == 0, built.stderr[-3000:]
    assert "WARNING" not in built.stderr
    return into


@pytest.fixture(scope="module")
def browser():
    if chromium.PROGRAM is None:
        pytest.skip("no Chromium is installed (Debian: chromium-headless-shell)")
    with chromium.open_browser() as found:
        yield found


class Elements(HTMLParser):
    """All elements of a page that name a file or a page."""

    def __init__(self, text):
        super().__init__()
        self.links, self.loaded = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        elif tag != "a":
            self.loaded += [
                given[key] for key in ("src", "href", "srcset", "data") if given.get(key)
            ]


def nav_pages(entries):
    for entry in entries:
        (value,) = entry.values() if isinstance(entry, dict) else (entry,)
        if isinstance(value, list):
            yield from nav_pages(value)
        else:
            yield value


def html_of(page):
    return page.removesuffix(".md") + ".html"


def test_every_page_is_in_the_nav_once():
    nav = list(nav_pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert sorted(nav) == PAGES


def test_every_page_is_reached_by_links_from_the_first(site):
    seen, waiting = set(), [site / "index.html"]
    while waiting:
        page = waiting.pop()
        if page in seen:
            continue
        seen.add(page)
        for link in Elements(page.read_text()).links:
            target = unquote(link.split("#")[0])
            if target.endswith(".html") and "://" not in target:
                found = (page.parent / target).resolve()
                assert found.is_file(), f"{page.name}: {link}"
                waiting.append(found)
    assert {site / html_of(page) for page in PAGES} <= seen


def test_no_page_or_style_loads_anything_from_another_host(site):
    for page in site.rglob("*.html"):
        assert [url for url in Elements(page.read_text()).loaded if "//" in url] == [], page
    for sheet in site.rglob("*.css"):
        found = re.findall(r"(?:@import|url\()\s*[\"']?(?:https?:)?//[^)\"']+", sheet.read_text())
        assert found == [], sheet
    settings = (site / "index.html").read_text()
    assert "fonts.g" not in settings
    assert "unpkg" not in settings


def test_a_link_that_leads_nowhere_fails_the_build(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# A page\n\n[gone](gone.md)\n")
    (tmp_path / "mkdocs.yml").write_text(
        f"INHERIT: {ROOT / 'mkdocs.yml'}\ndocs_dir: docs\nextra_css: []\nnav: [index.md]\n"
    )
    built = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert built.returncode != 0
    assert "gone.md" in built.stderr


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (800, False), (1280, True)])
def test_pages_load_from_disk_without_errors_or_requests_and_fit_the_window(
    site, browser, width, dark
):
    for page in PAGES:
        browser.errors.clear()
        browser.requests.clear()
        browser.open(site / html_of(page), width=width, dark=dark)
        assert browser.errors == [], page
        elsewhere = [
            u for u in browser.requests if not u.startswith((site.as_uri(), "data:", "about:"))
        ]
        assert elsewhere == [], page
        assert browser.run("document.documentElement.scrollWidth") <= width, page
        assert browser.run("[...document.images].filter(i => !i.naturalWidth).length") == 0, page
        scheme = browser.run("document.body.getAttribute('data-md-color-scheme')")
        assert scheme == ("slate" if dark else "default")


def test_the_search_finds_a_page_from_disk(site, browser):
    browser.errors.clear()
    browser.open(site / "index.html")
    browser.run("document.querySelector('[data-md-toggle=search]').click()")
    browser.run("document.querySelector('.md-search__input').focus()")
    type_in(browser, "nowheretobefound")
    found = "document.querySelectorAll('.md-search-result__link').length"
    assert not wait_for(browser, found, patience=1)
    browser.run("document.querySelector('.md-search__input').value = ''")
    type_in(browser, "apptainer")
    assert wait_for(browser, found, patience=15)
    links = "[...document.querySelectorAll('.md-search-result__link')].map(a => a.href).join(' ')"
    assert "/cluster.html" in browser.run(links)
    assert browser.errors == []


def type_in(browser, text):
    browser.ask("Input.insertText", text=text)
    browser.press("Shift", 16)  # the theme looks when a key is let go


def wait_for(browser, script, patience):
    """Say whether an expression becomes true in so many seconds."""
    return browser.run(
        f"""new Promise(done => {{
          const end = Date.now() + {1000 * patience};
          const look = () => ({script}) ? done(true) : Date.now() > end ? done(false)
            : setTimeout(look, 50);
          look();
        }})"""
    )


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_what_its_script_draws(name, tmp_path):
    subprocess.run(
        [sys.executable, str(DOCS / "pictures" / "draw.py"), name, "--into", str(tmp_path)],
        check=True, timeout=300, capture_output=True, cwd=tmp_path,
    )  # fmt: skip
    drawn, kept = (
        np.asarray(Image.open(folder / f"{name}.png").convert("RGB"), dtype=float)
        for folder in (tmp_path, DOCS / "pictures")
    )
    assert drawn.shape == kept.shape
    assert np.abs(drawn - kept).mean() < 2.0  # of 255: fonts and last digits may differ


def test_every_picture_is_shown_and_small():
    text = "".join((DOCS / page).read_text() for page in PAGES)
    for name in PICTURES:
        assert f"](pictures/{name}.png)" in text
        assert (DOCS / "pictures" / f"{name}.py").is_file()
        assert (DOCS / "pictures" / f"{name}.png").stat().st_size < 400_000


def test_every_format_of_lists_and_volumes_is_on_the_page_of_formats():
    text = (DOCS / "coordinates.md").read_text()
    lists, volumes = text.split("## Volumes")[0], text.split("## Volumes")[1].split("\n## ")[0]
    for name, kind in FORMATS.items():
        assert f"`{name}`" in lists, name
        assert [ending for ending in kind.endings if ending not in lists] == [], name
    for endings in ENDINGS.values():
        assert [ending for ending in endings if ending not in volumes] == []


TUTORIAL = (DOCS / "tutorial.md").read_text()


def blocks_of(language):
    return re.findall(rf"^```{language}\n(.*?)^```", TUTORIAL, re.DOTALL | re.MULTILINE)


def alike(said, wanted):
    """Say whether a line is the wanted one, numbers within a tenth (other processors round)."""
    words, expected = said.split(), wanted.split()
    return len(words) == len(expected) and all(map(word_alike, words, expected))


def word_alike(word, wanted):
    try:
        return abs(float(word) - float(wanted)) <= 0.1 * abs(float(wanted))
    except ValueError:
        return word == wanted


def test_the_tutorial_runs_as_it_stands(tmp_path):
    """Every command of the page, in order; then each line of its `text` blocks was said."""
    name = re.search(r"Save this as `([\w.]+)`", TUTORIAL).group(1)
    (settings,) = blocks_of("yaml")
    (tmp_path / name).write_text(settings)
    folder = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    said = []
    for line in "".join(blocks_of("bash")).splitlines():
        done = subprocess.run(
            shlex.split(line), cwd=tmp_path, capture_output=True, text=True, timeout=600,
            env={**os.environ, "PATH": folder, "COLUMNS": "200"},
        )  # fmt: skip
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        said += done.stdout.splitlines() + done.stderr.splitlines()
    for wanted in "".join(blocks_of("text")).splitlines():
        assert any(alike(line, wanted) for line in said), wanted
    for report in ("demo/results/report.html", "tutorial/report.html", "spheres.mrc"):
        assert (tmp_path / report).is_file()
    shutil.rmtree(tmp_path)
