"""The page in a real browser: headless Chromium, from file://."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fsn_d2.report import Evaluated, build_facts, render_page

playwright = pytest.importorskip(
    "playwright.sync_api", reason="needs playwright: pip install -e '.[browser]'"
)

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
HOSTILE = "</script><img src=x onerror=\"document.title='pwned'\">"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        own = started.chromium.executable_path
        names = ("chromium", "chromium-browser", "google-chrome")
        found = [path for path in (own, *map(shutil.which, names)) if path and Path(path).exists()]
        if not found:
            pytest.skip("needs Chromium: `playwright install chromium`, or Debian's chromium")
        running = started.chromium.launch(executable_path=found[0])
        yield running
        running.close()


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Opens a report; at the end nothing may have been said, asked, or loaded."""
    noise: list[str] = []
    pages = []

    def open_page(evaluated: Evaluated, size: dict[str, int] = DESKTOP) -> Any:
        path = tmp_path / "report.html"
        path.write_text(render_page(build_facts(evaluated)), encoding="utf-8")
        page = browser.new_page(viewport=size)
        page.on("console", lambda message: noise.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: noise.append(f"error: {error}"))
        page.on("dialog", lambda dialog: noise.append(f"dialog: {dialog.message}"))
        page.on("request", lambda r: r.url.startswith("data:") or noise.append(r.url))
        page.goto(path.as_uri())
        assert noise == [path.as_uri()]
        noise.clear()
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.wait_for_timeout(50)  # for what is on its way
        page.close()
    assert noise == []


def texts(page: Any, selector: str) -> list[str]:
    return [text.strip() for text in page.locator(selector).all_inner_texts()]


def table(page: Any, name: str) -> list[list[str]]:
    rows = page.locator(f"#{name} tr").all()
    return [[c.strip() for c in row.locator("th, td").all_inner_texts()] for row in rows]


def shown(page: Any) -> list[str]:
    return texts(page, "figure:visible strong")


def boxes(page: Any, picture: str) -> list[str]:
    figure = page.locator("figure", has_text=picture)
    return sorted(text.text_content() for text in figure.locator("svg text").all())


def test_the_numbers_at_the_best_threshold(opened: Callable[..., Any], by_hand: Evaluated) -> None:
    page = opened(by_hand)
    assert page.locator("output").inner_text() == "0.61"
    assert table(page, "ap-table") == [
        ["Class \u2191", "Objects", "AP", "AP50", "AP75", "Small", "Medium", "Large"],
        ["All classes", "3", "75.2", "75.2", "75.2", "\u2013", "75.2", "\u2013"],
        ["apple", "2", "50.5", "50.5", "50.5", "\u2013", "50.5", "\u2013"],
        ["bear", "1", "100.0", "100.0", "100.0", "\u2013", "100.0", "\u2013"],
    ]
    assert table(page, "threshold-table")[1:] == [
        ["All classes", "0.67", "0.67", "0.67", "2", "1", "1", "0.61"],
        ["apple", "0.50", "0.50", "0.50", "1", "1", "1", "0.81"],
        ["bear", "1.00", "1.00", "1.00", "1", "0", "0", "0.61"],
    ]
    assert table(page, "confusion-table") == [
        ["Object \\ said", "apple", "bear", "missed"],
        ["apple", "1", "0", "1"],
        ["bear", "1", "0", "0"],
        ["background", "0", "1", ""],
    ]
    assert table(page, "ratio-table")[1:] == [
        ["wide, < 0.71", "0", "\u2013", ""],
        ["square", "3", "75.2", ""],
        ["tall, > 1.41", "0", "\u2013", ""],
    ]
    places = table(page, "place-table")
    assert places[1] == ["top", "50.5\n2 obj.", "100.0\n1 obj.", "\u2013\n0 obj."]


def test_a_click_on_a_class_shows_that_class(
    opened: Callable[..., Any], by_hand: Evaluated
) -> None:
    page = opened(by_hand)
    assert shown(page) == ["worst 1: 2.png", "best 1: 1.png"]
    curve = page.locator("#curves .line:not(.other)").first.get_attribute("d")
    page.locator("#classes").get_by_text("bear").click()
    assert page.locator("#status").inner_text() == "bear: precision 1.00, recall 1.00, F1 1.00"
    assert texts(page, "#cards .value") == ["100.0"] * 3 + ["1.00"] * 3
    assert texts(page, "#ap-table tr.chosen th") == ["bear"]
    assert table(page, "place-table")[1][1:3] == ["\u2013\n0 obj.", "100.0\n1 obj."]
    assert page.locator("#curves .line:not(.other)").first.get_attribute("d") != curve
    assert shown(page) == ["best 1: 1.png"]
    assert boxes(page, "1.png") == ["bear 0.70"]
    page.locator("#ap-table").get_by_text("apple").click()
    assert page.locator("#status").inner_text() == "apple: precision 0.50, recall 0.50, F1 0.50"
    assert page.get_by_role("radio", name="apple").is_checked()


def test_the_threshold_moves_everything(opened: Callable[..., Any], by_hand: Evaluated) -> None:
    page = opened(by_hand)
    assert boxes(page, "1.png") == ["apple 0.80", "apple 0.90", "bear 0.70"]
    page.locator("#threshold").focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator("output").inner_text() == "0.60"
    assert boxes(page, "1.png") == ["apple 0.80", "apple 0.90", "bear 0.60", "bear 0.70"]
    assert table(page, "confusion-table")[3] == ["background", "0", "2", ""]
    page.keyboard.press("End")
    assert page.locator("output").inner_text() == "0.99"
    assert page.locator("#status").inner_text().endswith("precision \u2013, recall 0.00, F1 0.00")
    assert table(page, "confusion-table")[1] == ["apple", "0", "0", "2"]
    page.locator("#use-best").click()
    assert page.locator("output").inner_text() == "0.61"


def test_boxes_and_images_can_be_hidden(opened: Callable[..., Any], by_hand: Evaluated) -> None:
    page = opened(by_hand)
    correct = page.get_by_role("button", name="Correct")
    assert correct.get_attribute("aria-pressed") == "true"
    correct.click()
    assert correct.get_attribute("aria-pressed") == "false"
    assert boxes(page, "1.png") == ["apple 0.80"]
    page.get_by_role("button", name="Objects found").click()
    assert boxes(page, "1.png") == ["apple", "apple 0.80", "bear"]
    assert boxes(page, "2.png") == ["apple"]
    page.get_by_role("button", name="Missed").click()
    assert boxes(page, "2.png") == []
    page.get_by_role("button", name="Worst").click()
    assert shown(page) == ["best 1: 1.png"]
    page.get_by_role("button", name="Best", exact=True).click()
    assert shown(page) == []
    assert page.locator("#no-pictures").is_visible()


def test_boxes_lie_where_they_are_in_the_image(
    opened: Callable[..., Any], by_hand: Evaluated
) -> None:
    page = opened(by_hand)
    figure = page.locator("figure", has_text="1.png")
    assert figure.locator("image").evaluate("e => e.getBBox().width") == 300
    whole = figure.locator("image").bounding_box()
    box = figure.locator("rect.over.correct").first.bounding_box()
    scale = whole["width"] / 300
    assert box["x"] - whole["x"] == pytest.approx(10 * scale, abs=2)
    assert box["y"] - whole["y"] == pytest.approx(10 * scale, abs=2)
    assert box["width"] == pytest.approx(40 * scale, abs=4)
    pixels = figure.locator("image").evaluate(
        """async (element) => {
            const picture = new Image();
            picture.src = element.getAttribute("href");
            await picture.decode();
            return [picture.naturalWidth, picture.naturalHeight];
        }"""
    )
    assert pixels == [300, 300]


def test_a_heading_sorts(opened: Callable[..., Any], by_hand: Evaluated) -> None:
    page = opened(by_hand)
    names = "#ap-table tbody th"
    page.get_by_role("button", name="AP", exact=True).click()
    assert texts(page, names) == ["All classes", "bear", "apple"]
    assert page.locator("#ap-table th[aria-sort]").get_attribute("aria-sort") == "descending"
    page.keyboard.press("Enter")  # the heading has kept the focus
    assert texts(page, names) == ["All classes", "apple", "bear"]
    assert page.locator("#ap-table th[aria-sort]").get_attribute("aria-sort") == "ascending"


def test_the_keyboard_reaches_everything(opened: Callable[..., Any], by_hand: Evaluated) -> None:
    page = opened(by_hand)
    focused = "document.activeElement.id || document.activeElement.textContent.trim()"
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == "Skip to the results"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.type") == "radio"
    page.keyboard.press("ArrowRight")
    assert page.locator("#status").inner_text().startswith("apple:")
    page.keyboard.press("ArrowRight")
    assert page.locator("#status").inner_text().startswith("bear:")
    outline = "getComputedStyle(document.activeElement.nextSibling).outlineStyle"
    assert page.evaluate(outline) == "solid"
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(page.evaluate(focused))
        if reached[-1] == "Enlarge":
            break
    wanted = ["threshold", "use-best", "AP50", "apple", "Worst", "Best", "Correct", "Enlarge"]
    assert [name for name in reached if name in wanted] == wanted
    page.keyboard.press("Space")
    assert page.locator("figure.large").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_without_scrolling_sideways(
    opened: Callable[..., Any], by_hand: Evaluated, scheme: str
) -> None:
    page = opened(by_hand, PHONE)
    page.emulate_media(color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    for element in page.locator("h2, figure:visible, .chart, #cards > div, #filters").all():
        box = element.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= PHONE["width"]
    assert page.locator("#filters").bounding_box()["height"] < PHONE["height"] / 4
    # Text of a chart shrinks with it.
    smallest = page.locator(".chart text").first.evaluate("e => e.getBoundingClientRect().height")
    assert smallest >= 10
    assert page.evaluate(CONTRAST) >= 4.5


# The least contrast (WCAG's ratio) of a few kinds of text with what lies behind it.
CONTRAST = """() => {
  const channels = (color) => {
    const scale = color.startsWith("color(srgb") ? 255 : 1;
    return color.match(/[\\d.]+/g).map((part) => scale * part);
  };
  const light = (color) => {
    const [r, g, b] = channels(color).slice(0, 3).map((value) => {
      const part = value / 255;
      return part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    const color = getComputedStyle(element).backgroundColor;
    const opaque = !color.startsWith("rgba(");
    return opaque ? color : behind(element.parentElement);
  };
  const elements = document.querySelectorAll(
    "h2, .note, .meaning, #status, #classes span, button, th, td");
  return Math.min(...[...elements].map((element) => {
    const pair = [light(getComputedStyle(element).color), light(behind(element))];
    return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
  }));
}"""


def test_hostile_names_are_shown_as_text(
    opened: Callable[..., Any], build: Callable[..., Evaluated]
) -> None:
    box = [10.0, 10, 40, 40]
    evaluated = build([(1, 0, box)], [(1, 0, box, 0.9)], classes=(HOSTILE, "b"))
    evaluated.images[0]["file_name"] = HOSTILE
    page = opened(evaluated)
    assert texts(page, "#classes label") == ["All classes", HOSTILE, "b"]
    page.get_by_role("radio", name=HOSTILE).check(force=True)
    assert page.locator("#ap-table tr.chosen th").inner_text() == HOSTILE
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 2
    assert page.title() == "Evaluation: a set"


def test_many_classes_stay_manageable(
    opened: Callable[..., Any], build: Callable[..., Evaluated]
) -> None:
    box = [10.0, 10, 40, 40]
    names = tuple(f"class {i}" for i in range(80))
    evaluated = build([(1, 70, box), (2, 3, box)], [(1, 41, box, 0.9)], classes=names)
    page = opened(evaluated, PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    assert page.locator("#filters").bounding_box()["height"] < PHONE["height"] / 4
    assert len(table(page, "confusion-table")) == 1 + 12 + 1
    assert {"class 41", "class 70"} <= set(texts(page, "#confusion-table tbody th"))
    assert "68 of 80 classes" in page.locator("#confusion-note").inner_text()
    page.get_by_role("radio", name="class 79").check(force=True)
    assert "class 79" in texts(page, "#confusion-table tbody th")
    assert page.locator("#no-pictures").is_visible()


def test_nothing_at_all(opened: Callable[..., Any], build: Callable[..., Evaluated]) -> None:
    page = opened(build([], []))
    assert texts(page, "#cards .value") == ["\u2013"] * 6
    assert shown(page) == []
