"""Reports in a real browser: drawn, usable by all, and nothing leaves or runs that must not."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image
from test_report import DECISION, HOSTILE, measured_run, written_comparison

from dynasac import report

CHROMIUM = shutil.which("chromium")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SIZES = {"laptop": (1280, 800), "phone": (390, 844)}
KINDS = ("run", "comparison", "hostile")

pytestmark = pytest.mark.skipif(
    CHROMIUM is None and not os.environ.get("CI"), reason="there is no chromium: apt install it"
)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The addresses of a report of each kind."""
    folder = tmp_path_factory.mktemp("reports")
    hostile = measured_run(folder / HOSTILE.replace("/", ""), HOSTILE, HOSTILE + DECISION)
    directories = {
        "run": [measured_run(folder / "run")],
        "comparison": [written_comparison(folder / "comparison", longest=100_000)],
        "hostile": [hostile, written_comparison(folder / "other", (HOSTILE, "x" * 300, "ש‎ל"))],
    }
    return {
        kind: report.write_report(named, folder / f"{kind}.html").path.as_uri()
        for kind, named in directories.items()
    }


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    assert CHROMIUM is not None, "there is no chromium: apt install chromium"
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield launched
        launched.close()


def until(page, condition: str) -> None:
    """Wait for something to hold; the page itself forbids the `eval` of Playwright's own way."""
    for _ in range(300):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    pytest.fail(f"never came about: {condition}")


@pytest.fixture(scope="module")
def opened():
    """The pages that are open, each with its scheme, and what they did that they must not."""
    return {}, []


@pytest.fixture
def visit(browser, pages, opened):
    """A report, drawn to the end; whatever it does that it must not fails the test."""
    known, wrong = opened

    def abort(route):
        wrong.append(f"request of {route.request.url[:200]}")
        route.abort()

    def begun():
        page = browser.new_context().new_page()
        page.context.route(lambda url: not url.startswith(("file:", "data:")), abort)
        page.on("console", lambda said: wrong.append(f"console {said.type}: {said.text}"))
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (wrong.append("dialog"), dialog.dismiss()))
        page.on("websocket", lambda socket: wrong.append(f"socket {socket.url}"))
        return page

    def open_page(kind, scheme="light", fresh=False):
        page, shown = known.get(kind) or (begun(), None)
        if shown is None or fresh or scheme != shown:
            width, height = SIZES["laptop"]
            page.set_viewport_size({"width": width, "height": height})
            page.emulate_media(color_scheme=scheme)
            if shown is None:
                page.goto(pages[kind])
            else:  # far sooner than another page, for which all scripts are compiled again
                page.reload()
            until(page, "document.documentElement.dataset.drawn === ''")
            known[kind] = page, scheme
        return page

    yield open_page
    assert wrong == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_drawn_within_the_window_and_nothing_hostile_runs(visit, kind, scheme, tmp_path):
    page = visit(kind, scheme)
    for name, (width, height) in SIZES.items():
        page.set_viewport_size({"width": width, "height": height})
        until(page, f"document.documentElement.scrollWidth <= {width}")
        until(page, "[...document.querySelectorAll('[data-chart]')].every(place => "
              "place.querySelector('svg').getBoundingClientRect().width <= "
              "place.getBoundingClientRect().width + 1)")  # fmt: skip
        charts = page.evaluate(
            """() => [...document.querySelectorAll('[data-chart]')].map(place => ({
                name: place.dataset.chart,
                marks: place.querySelectorAll('svg .point, svg .js-line, svg image').length,
                width: place.querySelector('svg').getBoundingClientRect().width,
            }))"""
        )
        assert charts
        for chart in charts:
            assert chart["marks"] > 0, chart
            assert 200 < chart["width"] < width, chart
        path = tmp_path / f"{name}.png"
        page.screenshot(path=path, full_page=True)
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB")).astype(np.float32)
        assert pixels.shape[1] == width
        assert (pixels.mean() < 100) == (scheme == "dark")
        assert min(band.std() for band in np.array_split(pixels, 8)) > 3  # no part of it is blank
    assert page.evaluate("window.pwned") is None


def test_charts_follow_the_scheme_while_the_page_is_open(visit):
    page = visit("run")
    ink = "getComputedStyle(document.querySelector('[data-chart=curve] .xtick text')).fill"
    before = page.evaluate(ink)
    page.emulate_media(color_scheme="dark")
    until(page, f"{ink} !== '{before}'")
    assert min(map(int, page.evaluate(ink)[4:-1].split(","))) > 120
    page.emulate_media(color_scheme="light")
    until(page, f"{ink} === '{before}'")


def test_on_paper_charts_are_light_and_fit(visit):
    page = visit("run", scheme="dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    style = "getComputedStyle(document.documentElement).getPropertyValue('--surface')"
    assert page.evaluate(style).strip() == "#ffffff"
    assert page.evaluate("document.querySelector('svg').getBoundingClientRect().width") < 700
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate(style).strip() != "#ffffff"


@pytest.mark.parametrize("kind", KINDS)
def test_the_keyboard_reaches_everything(visit, kind):
    page = visit(kind, fresh=True)
    seen = []
    wanted = page.evaluate(
        """() => {
            const all = [...document.querySelectorAll('a, summary, .scroll, pre')];
            const there = all.filter(e => e.checkVisibility({contentVisibilityAuto: true}));
            there.forEach((element, k) => element.dataset.stop = k);
            return there.map(element => element.dataset.stop);
        }"""
    )
    for _ in range(len(wanted) + 12):
        page.keyboard.press("Tab")
        seen.append(
            page.evaluate(
                """() => ({
                    stop: document.activeElement.dataset.stop,
                    outlined: getComputedStyle(document.activeElement).outlineStyle !== 'none',
                    skip: document.activeElement.className === 'skip'
                        && document.activeElement.getBoundingClientRect().top >= 0,
                })"""
            )
        )
    assert seen[0]["skip"]
    reached = [stop for stop in seen if stop["stop"] is not None]
    assert {stop["stop"] for stop in reached} == set(wanted)
    assert all(stop["outlined"] for stop in reached)


def test_skipping_and_unfolding(visit):
    page = visit("run", fresh=True)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    folded = page.locator("figure:has([data-chart=curve]) details")
    folded.locator("summary").focus()
    page.keyboard.press("Enter")
    table = folded.locator("table")
    assert table.is_visible()
    assert "−131.9" in table.inner_text()


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_screen_reader_is_told(visit, kind):
    page = visit(kind)
    found = page.evaluate(
        """() => ({
            lang: document.documentElement.lang,
            title: document.title,
            landmarks: ['header', 'nav', 'main', 'footer'].map(
                name => document.querySelectorAll(`body > ${name}`).length),
            headings: [...document.querySelectorAll('h1, h2, h3, h4')].map(h => +h.tagName[1]),
            named: [...document.querySelectorAll('[role=img], figure, video, nav, section')].map(
                e => e.getAttribute('aria-label') || (e.getAttribute('aria-labelledby') || '')
                    .split(' ').map(id => document.getElementById(id)?.textContent).join('')
                    || e.querySelector('figcaption')?.textContent || ''),
            told: [...document.querySelectorAll('[role=img]')].map(
                e => document.getElementById(e.getAttribute('aria-describedby')).textContent),
            charts: document.querySelectorAll('figure [role=img]').length,
            tables: document.querySelectorAll('figure table').length,
            captions: [...document.querySelectorAll('table')].map(t => t.caption?.textContent),
            scopes: [...document.querySelectorAll('th')].map(th => th.scope),
        })"""
    )
    assert (found["lang"], found["landmarks"]) == ("en", [1, 1, 1, 1])
    assert found["title"]
    assert found["headings"].count(1) == 1
    assert (np.diff([0, *found["headings"]]) <= 1).all()
    assert all(name.strip() for name in found["named"])
    assert found["charts"] == found["tables"] == len(found["told"])
    assert all(any(c.isdigit() for c in said) for said in found["told"])
    assert all(found["captions"])
    assert set(found["scopes"]) == {"row", "col"}


def test_without_scripts_the_words_and_tables_are_there(browser, pages):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(pages["run"])
    assert page.get_by_text("−131.9 after 1 real episode").is_visible()
    context.close()
