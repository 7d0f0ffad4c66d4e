"""The page as a browser shows it: headless Chromium of the system, without a network."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

from cityscapes_maskrcnn.report.page import write_report

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

Open = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        reason = f"no browser: none of {', '.join(NAMES)} is installed"
        if os.environ.get("BROWSER_TESTS") == "required":
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def html(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("browser") / "report.html"
    write_report(finished_run, output)
    return output


@pytest.fixture
def open_page(browser: Browser, html: Path) -> Iterator[Open]:
    """``open_page(width=..., scheme=..., file=...)``; nothing may go wrong until the test's end."""
    problems: list[str] = []
    contexts = []

    def open_it(width: int = 1600, scheme: str = "light", file: Path = html) -> Page:
        context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme=scheme,
            permissions=["clipboard-read", "clipboard-write"],
        )
        # A machine may have other work.
        context.set_default_timeout(120_000)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: addresses.append(request.url))
        page.goto(file.as_uri())
        return page

    addresses: list[str] = []
    yield open_it
    for context in contexts:
        context.close()
    assert not problems
    # Nothing is loaded but the page itself.
    assert [each for each in addresses if not each.startswith(("file:", "data:"))] == []
    assert len([each for each in addresses if each.startswith("file:")]) == len(contexts)


@pytest.mark.parametrize(("width", "scheme"), [(400, "dark"), (1600, "light")])
def test_it_fits_and_is_accessible(open_page: Open, width: int, scheme: str) -> None:
    page = open_page(width, scheme)
    # All of it: what is folded away too.
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark is (scheme == "dark")
    found = Axe().run(page).response["violations"]
    serious = [each for each in found if each["impact"] in ("serious", "critical")]
    assert [(each["id"], each["nodes"][0]["html"]) for each in serious] == []


def test_tables_sort(open_page: Open) -> None:
    page = open_page()
    table = page.get_by_role("table", name="Stage 3 refined by class")

    def classes() -> list[str]:
        return table.locator("tbody th").all_inner_texts()

    names = ["person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"]
    assert classes() == names
    button = table.get_by_role("button", name="Official AP")
    heading = table.locator("thead th").nth(1)
    # As numbers: 17.5, 15.0, 10.0, ...; train has no objects and no AP, and stays last.
    button.click()
    down = ["bicycle", "motorcycle", "bus", "truck", "car", "rider", "person", "train"]
    assert classes() == down
    assert heading.get_attribute("aria-sort") == "descending"
    # By keyboard, the other way.
    button.press("Enter")
    assert classes() == [*down[-2::-1], "train"]
    assert heading.get_attribute("aria-sort") == "ascending"
    table.get_by_role("button", name="Class").click()
    assert classes() == sorted(names)
    assert heading.get_attribute("aria-sort") is None


def test_the_slider_works_by_keyboard(open_page: Open) -> None:
    page = open_page()
    example = page.locator("#main .example").first
    slider = example.get_by_role("slider")
    name = slider.get_attribute("aria-label")
    assert name == "Share of the picture that shows the ground truth of munster_000008"
    clip = "getComputedStyle(document.querySelector('#main .over')).clipPath"
    assert page.evaluate(clip) == "inset(0px 50% 0px 0px)"
    slider.press("ArrowRight")
    assert page.evaluate(clip) == "inset(0px 49% 0px 0px)"
    assert slider.get_attribute("aria-valuetext") == "51 % ground truth"
    slider.press("Home")
    assert page.evaluate(clip) == "inset(0px 100% 0px 0px)"
    # By mouse, in the middle of the picture.
    slider.click()
    assert abs(int(slider.input_value()) - 50) <= 1


def test_pictures_enlarge(open_page: Open) -> None:
    page = open_page()
    opener = page.get_by_role("button", name="Enlarge munster_000008")
    opener.press("Enter")
    viewer = page.get_by_role("dialog", name="Enlarged picture")
    assert viewer.is_visible()
    before = page.locator("#main .compare").first.bounding_box()
    after = viewer.locator(".compare").bounding_box()
    assert before
    assert after
    assert after["width"] > 1.5 * before["width"]
    # The slider works there too.
    viewer.get_by_role("slider").press("End")
    over = "getComputedStyle(document.querySelector('dialog .over')).clipPath"
    assert page.evaluate(over) == "inset(0px 0% 0px 0px)"
    page.keyboard.press("Escape")
    assert not viewer.is_visible()
    assert page.evaluate("document.activeElement.textContent") == "Enlarge munster_000008"
    page.get_by_role("button", name="Misses, enlarge").click()
    assert viewer.get_by_role("img", name="Misses, enlarge").is_visible()
    viewer.get_by_role("button", name="Close").click()
    assert not viewer.is_visible()


def test_pictures_enlarge_beyond_a_narrow_screen(open_page: Open) -> None:
    page = open_page(width=400)
    page.get_by_role("button", name="Enlarge munster_000008").click()
    picture = page.locator("dialog .compare").bounding_box()
    assert picture
    assert picture["width"] == 52 * 16
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    found = Axe().run(page).response["violations"]
    assert [each["id"] for each in found if each["impact"] in ("serious", "critical")] == []


def test_links_and_commands(open_page: Open) -> None:
    page = open_page()
    for link in page.get_by_role("navigation").get_by_role("link").all():
        link.click()
        fragment = link.get_attribute("href")
        page.wait_for_function("(id) => location.hash === id", arg=fragment)
        page.wait_for_function(
            "(id) => document.querySelector(id).getBoundingClientRect().top < innerHeight",
            arg=fragment,
        )
    page.keyboard.press("Control+Home")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download the table as CSV").click()
    assert download.value.suggested_filename == "performance.csv"
    assert "13.0" in download.value.path().read_text()
    command = page.get_by_role("button", name="Copy the command: Run the recipe")
    command.click()
    assert page.evaluate("navigator.clipboard.readText()").startswith(
        "python tools/train_stages.py"
    )
    page.get_by_role("button", name="Copied the command: Run the recipe").wait_for()


def test_hostile_texts_run_nothing(
    open_page: Open, make_run: Callable[..., Path], tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run", "'\"><img src=x onerror=alert(1)><script>alert(2)<_script>")
    write_report(run, tmp_path / "hostile.html")
    page = open_page(file=tmp_path / "hostile.html")
    page.on("dialog", lambda _: pytest.fail("a script ran"))
    assert page.locator("script").count() == 1
    assert page.locator("img[src=x]").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 1600


def test_what_is_missing_looks_right(open_page: Open, tmp_path: Path) -> None:
    (tmp_path / "run" / "stage_0").mkdir(parents=True)
    write_report(tmp_path / "run", tmp_path / "new.html")
    page = open_page(width=400, file=tmp_path / "new.html")
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    assert page.locator(".missing").count() == 10
