"""The page in a real browser before a real node: Debian's chromium, pushed to by storescu while it looks."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from pydicom import Dataset

from tests.harness import SYSTEM_PATH, Node, data_folder, small_series, storescu

pytestmark = pytest.mark.acceptance

PHONE = {"width": 390, "height": 844}
PAGES = ("/", "/series", "/series/1", "/jobs", "/deliveries", "/associations", "/problems", "/upload")
CEILING_MS = 120_000
NAME = 'DOE^"><script>document.title="owned"</script>'
DESCRIPTION = '<img src=x onerror="document.title=1">'


@pytest.fixture
def browser() -> Iterator[Browser]:
    program = shutil.which("chromium", path=SYSTEM_PATH)
    if program is None:
        pytest.skip("chromium is not installed")
    with sync_playwright() as playwright:
        # As root, which CI is, it has no sandbox of its own.
        started = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(
        tmp_path / "node",
        web={"enabled": True, "port": 0},
        outputs={"descriptions": True},
        completion={"quiet_s": 1.5},
    )
    with made:
        yield made


@pytest.fixture
def page(browser: Browser, node: Node) -> Iterator[Page]:
    """Return a tab that complains of any script error, refused resource or breach of the policy."""
    port = node.wait_for(lambda: node.counters("web").get("port"), "the page is served")
    context = browser.new_context(base_url=f"http://127.0.0.1:{port}", viewport={"width": 1280, "height": 860})
    tab = context.new_page()
    tab.set_default_timeout(CEILING_MS)
    said: list[str] = []
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    yield tab
    context.close()
    assert said == []


def hostile(_number: int, image: Dataset) -> None:
    image.PatientName = NAME
    image.SeriesDescription = DESCRIPTION
    image.StudyDescription = DESCRIPTION


def shot(page: Page, name: str) -> None:
    """Keep a picture where CTNODE_TEST_SHOTS says; for eyes, not for the test."""
    folder = os.environ.get("CTNODE_TEST_SHOTS")
    if folder:
        page.screenshot(path=Path(folder) / f"{name}.png", full_page="whole" in name)


def test_the_page_in_a_browser(page: Page, node: Node, tmp_path: Path) -> None:
    # One test, for a node and a browser are dear: what each part needs is there.
    a_series_comes_up_lives_and_runs_again_before_the_eyes(page, node, tmp_path)
    the_keyboard_is_enough(page)
    files_are_uploaded_without_a_script(page, tmp_path)
    for scheme in ("light", "dark"):
        every_page_fits_a_phone_and_can_be_read(page, scheme)


def files_are_uploaded_without_a_script(page: Page, place: Path) -> None:
    _, files = small_series(place, 7)
    browser = page.context.browser
    assert browser is not None
    with browser.new_context(base_url=page.url, java_script_enabled=False) as context:
        plain = context.new_page()
        plain.set_default_timeout(CEILING_MS)
        plain.goto("/upload")
        plain.locator("input[type=file]").set_input_files([str(file) for file in files[:2]])
        plain.get_by_role("button", name="Upload", exact=True).click()
        expect(plain.get_by_text("2 images taken")).to_be_visible(timeout=CEILING_MS)


def a_series_comes_up_lives_and_runs_again_before_the_eyes(page: Page, node: Node, tmp_path: Path) -> None:
    page.goto("/series")
    expect(page.locator("#pulse")).to_have_text(re.compile("^live$", re.IGNORECASE))
    expect(page.get_by_text("No series fits.")).to_be_visible()
    page.evaluate("window.sameDocument = true")
    uid, files = small_series(tmp_path, 1, edit=hostile)
    chest = data_folder("chest/lung_dx_a0002_siemens_8mm")
    storescu(node.port, files, calling="CT1")
    row = page.locator("tr[data-key=s1]")
    expect(row).to_contain_text("CT1", timeout=CEILING_MS)
    for state in ("Receiving", "Processing", "Done"):
        expect(row).to_contain_text(state, timeout=CEILING_MS)
    expect(row).to_contain_text("Exact")
    # All of that without a reload.
    assert page.evaluate("window.sameDocument") is True
    shot(page, "series-list")

    row.get_by_role("link").click()
    expect(page.locator("h1")).to_have_text(uid)
    pictures = page.locator(".gallery img")
    expect(pictures.first).to_be_visible()
    page.wait_for_function(
        "[...document.querySelectorAll('.gallery img')].every(one => one.scrollIntoView() || one.naturalWidth > 99)"
    )
    # What the sender wrote is text, and nothing of the patient is there at all.
    expect(page.get_by_text(DESCRIPTION).first).to_be_visible()
    assert "DOE" not in page.content()
    assert page.title() == "Series 1 · ctnode"

    page.evaluate("window.sameDocument = true")
    page.get_by_role("button", name="Run again").click()
    expect(page.locator(".said")).to_have_text("revision 1 is queued")
    expect(page.locator(".timeline")).to_contain_text("requeued by local on the page")
    expect(page.locator("[data-live=head] .states")).to_contain_text("Done", timeout=CEILING_MS)
    assert node.query("SELECT attempt FROM jobs") == [(2,)]

    with page.expect_download() as download:
        page.get_by_role("link", name="ct.nii.gz", exact=True).click()
    assert Path(download.value.path()).read_bytes() == (node.results(uid) / "ct.nii.gz").read_bytes()

    page.goto("/upload")
    page.locator("input[type=file]").set_input_files([str(file) for file in sorted(chest.glob("*.dcm"))[:2]])
    expect(page.locator("#uploads").get_by_text("1 taken")).to_have_count(2, timeout=CEILING_MS)


def the_keyboard_is_enough(page: Page) -> None:
    page.goto("/series")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("/")
    page.keyboard.type("CT1")
    page.keyboard.press("Enter")
    page.wait_for_url("**/series?q=CT1*")
    page.keyboard.press("j")
    assert page.evaluate("document.activeElement.getAttribute('href')") == "/series/1"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("Enter")
    page.wait_for_url("**/series/1")


def every_page_fits_a_phone_and_can_be_read(page: Page, scheme: str) -> None:
    page.set_viewport_size(PHONE)  # type: ignore[arg-type]
    # A row that has just come in glows for a moment; what is measured are the colours that stay.
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
    for path in PAGES:
        page.goto(path)
        wider = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wider <= 0, f"{path} is {wider} pixels too wide"
        wider = page.evaluate(LONG_WORDS)
        assert wider <= 0, f"{path} is {wider} pixels too wide with a long UID in a message"
        assert page.evaluate(FAINT) == [], path
        # No state is told by colour alone: each mark has a word.
        assert (
            page.evaluate("[...document.querySelectorAll('.state')].filter(one => !one.innerText.trim()).length") == 0
        )
        shot(page, f"phone-{scheme}-{path.strip('/').replace('/', '-') or 'now'}")


LONG_WORDS = """() => {
  for (const cell of document.querySelectorAll('.rows td:not(.n)')) cell.append(' ' + '1.2.840.'.repeat(8));
  return document.documentElement.scrollWidth - document.documentElement.clientWidth;
}"""
# Texts whose contrast to what lies behind them is under 4.5 (WCAG 2.2, 1.4.3).
FAINT = """() => {
  const light = (text) => {
    const parts = text.match(/[0-9.]+/g).map(Number);
    const linear = (one) => (one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = parts.map((one) => linear(one / 255));
    return [0.2126 * r + 0.7152 * g + 0.0722 * b, parts.length > 3 ? parts[3] : 1];
  };
  const found = [];
  for (const one of document.querySelectorAll("main *, nav *, footer *")) {
    const own = [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || !one.checkVisibility()) continue;
    let behind = one;
    const isClear = (element) => light(getComputedStyle(element).backgroundColor)[1] === 0;
    while (behind.parentElement && isClear(behind)) behind = behind.parentElement;
    const back = getComputedStyle(behind).backgroundColor;
    const levels = [light(getComputedStyle(one).color)[0], light(back)[0]].sort((a, b) => b - a);
    if ((levels[0] + 0.05) / (levels[1] + 0.05) < 4.5) found.push(`${one.className}: ${one.textContent.trim()}`);
  }
  return found;
}"""
