"""The page in Chromium: what is fetched, what overflows, what a reader can do with mouse and keyboard."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from chromabox.report.document.write import write_html
from report_fixtures import make_sample_document

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=f"needs a browser: none of {', '.join(NAMES)} is installed")

#: Of every element with words of its own: itself, its colour, and the colour of the nearest ground behind it.
TEXTS_AND_GROUNDS = """() => [...document.querySelectorAll("main *, header *, nav *")]
  .filter((one) => one.checkVisibility() && !["IMG", "BUTTON"].includes(one.tagName)
    && [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim()))
  .map((one) => {
    let behind = one, ground;
    do {
      ground = getComputedStyle(behind).backgroundColor;
      behind = behind.parentElement;
    } while (/, 0\\)$/.test(ground) && behind);
    return [one.outerHTML.slice(0, 60), getComputedStyle(one).color, ground];
  })"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    return write_html(make_sample_document(folder), folder / "report <&> é.html")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser: Any, report: Path) -> Iterator[Callable[..., Any]]:
    """Opens the page; whatever is written to the console, fails or is fetched from elsewhere fails the test."""
    contexts, wrong = [], []

    def watch_request(request: Any) -> None:
        if not request.url.startswith(("file://", "data:")):
            wrong.append(request.url)

    def open_page(width: int = 1440, height: int = 900, **options: Any) -> Any:
        contexts.append(browser.new_context(viewport={"width": width, "height": height}, **options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("requestfailed", lambda request: wrong.append(request.url))
        page.on("request", watch_request)
        page.goto(report.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


def column(page: Any, index: int) -> list[str]:
    cells: list[str] = page.locator(f"figure:has-text('Longest first') tbody td:nth-child({index})").all_inner_texts()
    return cells


@pytest.mark.parametrize("width", [360, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_never_scrolls_sideways(visit: Callable[..., Any], tmp_path: Path, width: int, scheme: str) -> None:
    page = visit(width, 800, color_scheme=scheme)
    page.locator("details").evaluate("details => { details.open = true }")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate("document.body.scrollWidth") <= width
    outside = page.evaluate(
        """width => [...document.querySelectorAll("body *")].filter((one) => !one.closest(".scroll > *, .skip")
        && one.getBoundingClientRect().right > width + 0.5).map((one) => one.outerHTML.slice(0, 80))""",
        width,
    )
    assert outside == []
    picture = tmp_path / "page.png"
    page.screenshot(path=picture, full_page=True)
    pixels = np.asarray(Image.open(picture).convert("L"))
    assert pixels.shape[1] == width
    assert (np.median(pixels) > 200) == (scheme == "light")


def test_wide_tables_scroll_within_their_box(visit: Callable[..., Any]) -> None:
    box = visit(360, 800).locator("figure:has-text('Thirty runs') .scroll")
    assert box.evaluate("box => box.scrollWidth > box.clientWidth")
    box.evaluate("box => box.scrollTo(10000, 0)")
    assert box.locator("th").last.is_visible()


def test_numbers_sort_by_value_upwards_downwards_and_back(visit: Callable[..., Any]) -> None:
    page = visit()
    heading = page.locator("figure:has-text('Longest first') th").nth(1)
    before = column(page, 1)
    assert (before, heading.get_attribute("aria-sort")) == (list("bcaed"), "none")
    heading.locator("button").click()
    assert (column(page, 2), heading.get_attribute("aria-sort")) == (
        ["−2.0", "9.25", "10.5", "1,234.5", "–"],
        "ascending",
    )
    heading.locator("button").click()
    assert (column(page, 2), heading.get_attribute("aria-sort")) == (
        ["1,234.5", "10.5", "9.25", "−2.0", "–"],
        "descending",
    )
    heading.locator("button").click()
    assert (column(page, 1), heading.get_attribute("aria-sort")) == (before, "none")


@pytest.mark.parametrize("key", ["Enter", "Space"])
def test_sorting_by_keyboard(visit: Callable[..., Any], key: str) -> None:
    page = visit()
    headings = page.locator("figure:has-text('Longest first') th")
    headings.nth(0).locator("button").focus()
    page.keyboard.press(key)
    assert column(page, 1) == list("abcde")
    page.keyboard.press("Tab")
    page.keyboard.press(key)
    assert column(page, 1) == list("cabed")
    assert [headings.nth(index).get_attribute("aria-sort") for index in (0, 1)] == ["none", "ascending"]


def test_dark_and_light_by_the_button_and_remembered(visit: Callable[..., Any]) -> None:
    page = visit(color_scheme="light")

    def ground() -> list[int]:
        return [
            int(part)
            for part in re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))[:3]
        ]

    assert min(ground()) > 230
    page.get_by_role("button", name="Change to dark colours").click()
    assert max(ground()) < 50
    page.reload()
    assert max(ground()) < 50
    page.get_by_role("button", name="Change to light colours").press("Enter")
    assert min(ground()) > 230


def test_sources_show_under_pointer_and_keyboard(visit: Callable[..., Any]) -> None:
    page = visit()
    number = page.locator("p .number").first
    tip = page.get_by_role("tooltip")
    assert not tip.is_visible()
    number.hover()
    assert tip.inner_text() == "runs/unet-course-seed*/summary.json: test_accuracy"
    page.mouse.move(5, 5)
    assert not tip.is_visible()
    number.focus()
    assert tip.is_visible()
    assert number.get_attribute("aria-describedby") == "-source"
    page.keyboard.press("Escape")
    assert not tip.is_visible()


def test_a_table_is_one_stop_of_the_tab_key_and_arrows_go_on(visit: Callable[..., Any]) -> None:
    page = visit()
    table = page.locator("figure:has-text('Longest first')")
    assert table.locator(".number[tabindex='0']").count() == 1
    table.locator(".number").first.focus()
    for key, expected in (("ArrowDown", "−2.0"), ("ArrowDown", "9.25"), ("ArrowUp", "−2.0"), ("ArrowLeft", "−2.0")):
        page.keyboard.press(key)
        assert page.evaluate("document.activeElement.innerText") == expected
    assert page.get_by_role("tooltip").inner_text() == "c.json: loss"


def test_the_contents_lead_to_the_parts(visit: Callable[..., Any]) -> None:
    page = visit(reduced_motion="reduce")
    page.get_by_role("link", name="B.5 Batch sizes").click()
    assert page.url.endswith("#B.5")
    assert 0 <= page.locator("[id='B.5']").bounding_box()["y"] < 60
    page.wait_for_selector("nav a[aria-current]:has-text('Batch sizes')")


def test_words_stand_on_their_ground_with_contrast(visit: Callable[..., Any]) -> None:
    """At least 4.5 to 1 (WCAG 2.2, 1.4.3), by their formula, for every text in either colour scheme."""
    for scheme in ("light", "dark"):
        pairs = visit(color_scheme=scheme).evaluate(TEXTS_AND_GROUNDS)
        assert len(pairs) > 500
        low = [pair for pair in pairs if contrast(pair[1], pair[2]) < 4.5]
        assert low == []


def contrast(ink: str, ground: str) -> float:
    light = []
    for colour in (ink, ground):
        channels = np.array([float(part) for part in re.findall(r"[\d.]+", colour)[:3]]) / 255
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        light.append(float(linear @ [0.2126, 0.7152, 0.0722]))
    return (max(light) + 0.05) / (min(light) + 0.05)


def test_every_button_has_a_name(visit: Callable[..., Any]) -> None:
    """Also that of a column without a heading."""
    page = visit()
    buttons = page.get_by_role("button").all()
    assert len(buttons) == page.get_by_role("button", name=re.compile(r"\w")).count() > 20
    assert page.get_by_role("button", name="Column 1", exact=True).count() == 1
