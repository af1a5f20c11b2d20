"""The HTML page in Chromium: network requests, overflow, and interaction by mouse and keyboard."""

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
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=f"needs a browser, none of {', '.join(BROWSERS)} is installed")

#: For every element with text: its HTML, its colour, and the colour of the nearest opaque background.
TEXTS_AND_BACKGROUNDS = """() => [...document.querySelectorAll("main *, header *, nav *")]
  .filter((element) => element.checkVisibility() && !["IMG", "BUTTON"].includes(element.tagName)
    && [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()))
  .map((element) => {
    let ancestor = element, background;
    do {
      background = getComputedStyle(ancestor).backgroundColor;
      ancestor = ancestor.parentElement;
    } while (/, 0\\)$/.test(background) && ancestor);
    return [element.outerHTML.slice(0, 60), getComputedStyle(element).color, background];
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
def open_page(browser: Any, report: Path) -> Iterator[Callable[..., Any]]:
    """Open the page; console messages, errors, failed requests and requests to other hosts fail the test."""
    contexts, problems = [], []

    def check_request(request: Any) -> None:
        if not request.url.startswith(("file://", "data:")):
            problems.append(request.url)

    def open_in_context(width: int = 1440, height: int = 900, **options: Any) -> Any:
        contexts.append(browser.new_context(viewport={"width": width, "height": height}, **options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("requestfailed", lambda request: problems.append(request.url))
        page.on("request", check_request)
        page.goto(report.as_uri())
        return page

    yield open_in_context
    for context in contexts:
        context.close()
    assert problems == []


def column_texts(page: Any, index: int) -> list[str]:
    cells: list[str] = page.locator(f"figure:has-text('Longest first') tbody td:nth-child({index})").all_inner_texts()
    return cells


@pytest.mark.parametrize("width", [360, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_has_no_horizontal_scrolling(
    open_page: Callable[..., Any], tmp_path: Path, width: int, scheme: str
) -> None:
    page = open_page(width, 800, color_scheme=scheme)
    page.locator("details").evaluate("details => { details.open = true }")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate("document.body.scrollWidth") <= width
    outside = page.evaluate(
        """width => [...document.querySelectorAll("body *")].filter((element) => !element.closest(".scroll > *, .skip")
        && element.getBoundingClientRect().right > width + 0.5).map((element) => element.outerHTML.slice(0, 80))""",
        width,
    )
    assert outside == []
    screenshot = tmp_path / "page.png"
    page.screenshot(path=screenshot)
    pixels = np.asarray(Image.open(screenshot).convert("L"))
    assert pixels.shape[1] == width
    assert (np.median(pixels) > 200) == (scheme == "light")


def test_wide_tables_scroll_in_their_container(open_page: Callable[..., Any]) -> None:
    box = open_page(360, 800).locator("figure:has-text('Thirty runs') .scroll")
    assert box.evaluate("box => box.scrollWidth > box.clientWidth")
    box.evaluate("box => box.scrollTo(10000, 0)")
    assert box.locator("th").last.is_visible()


def test_numbers_are_sorted_by_value_ascending_descending_and_back(open_page: Callable[..., Any]) -> None:
    page = open_page()
    heading = page.locator("figure:has-text('Longest first') th").nth(1)
    before = column_texts(page, 1)
    assert (before, heading.get_attribute("aria-sort")) == (list("bcaed"), "none")
    heading.locator("button").click()
    assert (column_texts(page, 2), heading.get_attribute("aria-sort")) == (
        ["−2.0", "9.25", "10.5", "1,234.5", "–"],
        "ascending",
    )
    heading.locator("button").click()
    assert (column_texts(page, 2), heading.get_attribute("aria-sort")) == (
        ["1,234.5", "10.5", "9.25", "−2.0", "–"],
        "descending",
    )
    heading.locator("button").click()
    assert (column_texts(page, 1), heading.get_attribute("aria-sort")) == (before, "none")


@pytest.mark.parametrize("key", ["Enter", "Space"])
def test_tables_can_be_sorted_by_keyboard(open_page: Callable[..., Any], key: str) -> None:
    page = open_page()
    headings = page.locator("figure:has-text('Longest first') th")
    headings.nth(0).locator("button").focus()
    page.keyboard.press(key)
    assert column_texts(page, 1) == list("abcde")
    page.keyboard.press("Tab")
    page.keyboard.press(key)
    assert column_texts(page, 1) == list("cabed")
    assert [headings.nth(index).get_attribute("aria-sort") for index in (0, 1)] == ["none", "ascending"]


def test_colour_scheme_button_is_persistent(open_page: Callable[..., Any]) -> None:
    page = open_page(color_scheme="light")

    def background() -> list[int]:
        return [
            int(part)
            for part in re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))[:3]
        ]

    assert min(background()) > 230
    page.get_by_role("button", name="Switch to dark mode").click()
    assert max(background()) < 50
    page.reload()
    assert max(background()) < 50
    page.get_by_role("button", name="Switch to light mode").press("Enter")
    assert min(background()) > 230


def test_sources_are_shown_on_hover_and_focus(open_page: Callable[..., Any]) -> None:
    page = open_page()
    number = page.locator("p .number").first
    tooltip = page.get_by_role("tooltip")
    assert not tooltip.is_visible()
    number.hover()
    assert tooltip.inner_text() == "runs/unet-course-seed*/summary.json: test_accuracy"
    page.mouse.move(5, 5)
    assert not tooltip.is_visible()
    number.focus()
    assert tooltip.is_visible()
    assert number.get_attribute("aria-describedby") == "-source"
    page.keyboard.press("Escape")
    assert not tooltip.is_visible()


def test_table_is_one_tab_stop_and_arrows_move_between_cells(open_page: Callable[..., Any]) -> None:
    page = open_page()
    table = page.locator("figure:has-text('Longest first')")
    assert table.locator(".number[tabindex='0']").count() == 1
    table.locator(".number").first.focus()
    for key, expected in (("ArrowDown", "−2.0"), ("ArrowDown", "9.25"), ("ArrowUp", "−2.0"), ("ArrowLeft", "−2.0")):
        page.keyboard.press(key)
        assert page.evaluate("document.activeElement.innerText") == expected
    assert page.get_by_role("tooltip").inner_text() == "c.json: loss"


def test_contents_link_to_sections(open_page: Callable[..., Any]) -> None:
    page = open_page(reduced_motion="reduce")
    page.get_by_role("link", name="B.5 Batch sizes").click()
    assert page.url.endswith("#B.5")
    assert 0 <= page.locator("[id='B.5']").bounding_box()["y"] < 60
    page.wait_for_selector("nav a[aria-current]:has-text('Batch sizes')")


def test_texts_have_sufficient_contrast(open_page: Callable[..., Any]) -> None:
    """Contrast is at least 4.5:1 (WCAG 2.2, 1.4.3, with its formula) for all text in both colour schemes."""
    for scheme in ("light", "dark"):
        pairs = open_page(color_scheme=scheme).evaluate(TEXTS_AND_BACKGROUNDS)
        assert len(pairs) > 500
        low = [pair for pair in pairs if contrast(pair[1], pair[2]) < 4.5]
        assert low == []


def contrast(foreground: str, background: str) -> float:
    luminances = []
    for colour in (foreground, background):
        channels = np.array([float(part) for part in re.findall(r"[\d.]+", colour)[:3]]) / 255
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        luminances.append(float(linear @ [0.2126, 0.7152, 0.0722]))
    return (max(luminances) + 0.05) / (min(luminances) + 0.05)


def test_every_button_has_an_accessible_name(open_page: Callable[..., Any]) -> None:
    """The button of a column without a heading has a name too."""
    page = open_page()
    buttons = page.get_by_role("button").all()
    assert len(buttons) == page.get_by_role("button", name=re.compile(r"\w")).count() > 20
    assert page.get_by_role("button", name="Column 1", exact=True).count() == 1
