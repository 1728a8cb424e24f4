"""The page at `/` in a headless Chromium, if there is one: what a person sees and does."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from test_serve import FABLE, beside, make_server

if TYPE_CHECKING:
    from playwright.sync_api import Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DEADLINE = 20_000  # milliseconds
LONG_NAME = f"{'a-long-name-of-a-document-' * 6}.txt"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here"),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ADAMAS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    Path("fable.txt").write_text(FABLE * 4)
    Path(LONG_NAME).write_text("A crow.\n")
    return tmp_path


def test_a_person_asks_about_documents(folder: Path, tiny_model: Path) -> None:
    sync_api = pytest.importorskip("playwright.sync_api")

    def use(address: str) -> None:
        with sync_api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            page = browser.new_page()
            page.set_default_timeout(DEADLINE)
            wrong: list[str] = []
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.on("console", lambda said: wrong.append(said.text) if "Policy" in said.text else None)
            page.goto(address)
            asks_about_a_picked_document(page)
            keeps_the_conversation(page)
            reads_an_upload(page, folder)
            tells_errors(page)
            fits_a_narrow_window(page)
            assert wrong == []
            browser.close()

    with make_server(tiny_model, [Path("fable.txt"), Path(LONG_NAME)]) as server:
        server.open(lambda event: None)
        beside(server, use)


def wait_for_documents(page: Page, count: int) -> None:
    page.locator("#documents input").nth(count - 1).wait_for()


def picked(page: Page) -> list[str]:
    return sorted(page.locator("#documents label:has(:checked)").all_inner_texts(), reverse=True)


def asks_about_a_picked_document(page: Page) -> None:
    wait_for_documents(page, 2)
    assert picked(page) == ["fable.txt", LONG_NAME]
    page.get_by_label(LONG_NAME).uncheck()
    page.get_by_role("textbox").fill("What does the fox want?")
    page.keyboard.press("Enter")
    page.wait_for_selector("#stop", state="hidden")
    assert page.locator("#talk .answer").inner_text().strip()
    page.wait_for_selector("#text .marked")
    assert page.locator("#title").inner_text().endswith("fable.txt")
    assert page.locator("#text div").first.inner_text().startswith("A fox saw grapes")
    page.locator("#passages button").last.click()
    assert page.locator("#talk .error").count() == 0


def keeps_the_conversation(page: Page) -> None:
    said = page.locator("#talk .answer").inner_text()
    page.reload()
    wait_for_documents(page, 2)
    assert page.locator("#talk .answer").inner_text() == said
    assert picked(page) == ["fable.txt"]
    page.get_by_role("button", name="Begin anew").click()
    assert page.locator("#talk").inner_text() == ""


def reads_an_upload(page: Page, folder: Path) -> None:
    """Reading is slow enough to be seen, and a reload during it restores the question."""
    upload = folder / "long.txt"
    upload.write_text(FABLE * 30)
    page.set_input_files("#upload", upload)
    wait_for_documents(page, 3)
    page.evaluate(
        """() => {
            window.shown = [];
            new MutationObserver(() => window.shown.push(document.getElementById("state").textContent))
                .observe(document.getElementById("state"), { childList: true });
        }"""
    )
    page.get_by_role("textbox").fill("Who?")
    page.keyboard.press("Enter")
    while not any("reading" in line and "tokens" in line for line in page.evaluate("window.shown")):
        page.wait_for_timeout(20)  # ends with the test's own timeout
    page.reload()
    wait_for_documents(page, 3)
    assert page.get_by_role("textbox").input_value() == "Who?"


def tells_errors(page: Page) -> None:
    page.get_by_role("textbox").fill("x" * 5000)
    page.keyboard.press("Enter")
    page.wait_for_selector("#talk .error")
    assert "context" in page.locator("#talk .error").inner_text()
    assert page.get_by_role("textbox").input_value() == "x" * 5000  # so that it can be corrected
    page.get_by_role("button", name="Begin anew").click()


def fits_a_narrow_window(page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
