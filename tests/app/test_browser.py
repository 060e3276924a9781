"""The page in a browser: drop, compare, slide, zoom, download; hostile uploads; narrow and wide, light and dark."""

import re
import shutil
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

pytest.importorskip("gradio", reason="the page needs gradio: pip install 'ssdd[app]'")
playwright = pytest.importorskip("playwright.sync_api", reason="a browser is driven by playwright")
playwright.expect.set_options(timeout=60_000)  # of what the page is to show when its events have ended

from ssdd.app.compare import Comparison, compare  # noqa: E402
from ssdd.autoencoder.codec import load_encoded  # noqa: E402
from tests.app.serving import Served, serve_page  # noqa: E402
from tests.images import png  # noqa: E402

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")]


@pytest.fixture(scope="module")
def served(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve_page(tiny_model, tmp_path_factory.mktemp("browser")) as served:
        yield served


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(served: Served, browser: "Browser") -> "Iterator[Callable[..., Page]]":
    """``open_page(width, scheme)``: a page with its first picture; no request may go elsewhere."""
    requests: list[str] = []
    contexts = []

    def open_page(width: int = 1280, scheme: str = "light") -> "Page":
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("request", lambda request: requests.append(request.url))
        page.goto(served.url)
        page.wait_for_selector("#table tbody tr:nth-child(2)")
        return page

    yield open_page
    for context in contexts:
        context.close()
    elsewhere = [url for url in requests if not url.startswith((served.url, "data:", "blob:"))]
    assert requests
    assert not elsewhere, "a request leaves the machine"


def sources(page: "Page", place: str) -> list[str]:
    """Return the addresses of the pictures in a part of the page."""
    return page.locator(f"{place} img").evaluate_all("images => images.map(image => image.src)")


def press(page: "Page", control: str, key: str, times: int = 1) -> None:
    """Move a slider with the keyboard alone."""
    page.locator(f"{control} input[type=range]").focus()
    for _ in range(times):
        page.keyboard.press(key)


def changes(page: "Page", place: str, act: Callable[[], object]) -> None:
    """Wait until an act has changed the pictures in a part of the page."""
    before = sources(page, place)
    act()
    page.wait_for_function(
        "([place, before]) => [...document.querySelectorAll(place + ' img')].map(i => i.src).join() != before",
        arg=[place, ",".join(before)],
    )


def tab(page: "Page", name: str) -> None:
    page.get_by_role("tab", name=name).click()


def upload(page: "Page", path: Path) -> None:
    """Choose a file with the keyboard alone."""
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Click to upload").press("Enter")
    chooser.value.set_files(path)


def test_from_a_drop_to_a_download(
    open_page: "Callable[..., Page]", picture: Callable[..., np.ndarray], tiny_model: Path, tmp_path: Path
) -> None:
    page = open_page()
    (tmp_path / "mine.png").write_bytes(png(picture(100, 130)))
    changes(page, "#slider", lambda: upload(page, tmp_path / "mine.png"))
    playwright.expect(page.locator("#table")).to_contain_text("mine.png: 128 x 96 pixels")
    rows = playwright.expect(page.locator("#table tbody th"))
    rows.to_have_count(2)
    rows.to_contain_text([tiny_model.name, "JPEG, same bytes"])

    left = page.locator("#slider .inner").bounding_box()["x"]
    press(page, "#divider", "ArrowRight", 10)
    page.wait_for_function(
        "left => document.querySelector('#slider .inner').getBoundingClientRect().x > left + 5", arg=left
    )  # the divider follows the keyboard

    changes(page, "#slider", lambda: press(page, "#steps", "ArrowRight", 2))
    page.wait_for_function("document.querySelector('#table tbody tr td:nth-child(6)').innerText == '3'")
    changes(page, "#slider", lambda: press(page, "#noise", "ArrowRight", 4))
    changes(page, "#difference", lambda: press(page, "#seed", "ArrowRight"))
    tab(page, "Download")
    playwright.expect(page.locator("#python")).to_contain_text("STEPS, SEED, LATENT_NOISE = 3, 1, 0.2")
    tab(page, "Compare")  # all is computed: a control that is drawn anew would lose a click
    changes(page, "#slider", lambda: page.locator("#shown").get_by_text("JPEG, same bytes").click())
    changes(page, "#slider", lambda: page.locator("#shown").get_by_text(tiny_model.name).click())

    tab(page, "Zoom")
    playwright.expect(page.locator("#crops figure")).to_have_count(3)  # the original and two models
    changes(page, "#crops", lambda: press(page, "#zoom", "ArrowRight", 4))
    across = page.locator("#across input[type=number]")
    for _ in range(20):  # the picture is drawn anew for each step of the zoom, and takes no click until it is there
        page.locator("#overview img").click(position={"x": 5, "y": 5})
        page.wait_for_timeout(500)
        if float(across.input_value()) < 5:
            break
    assert float(across.input_value()) < 5, "a click on the overview does not choose a square"
    tab(page, "Latent")
    playwright.expect(page.locator("#channels figure")).to_have_count(4)

    tab(page, "Download")
    page.get_by_role("button", name="Make the files").click()
    links = page.locator("#files a[download]")
    links.nth(4).wait_for()
    with page.expect_download() as download:
        page.locator("#files a[download$='.safetensors']").first.click()
    download.value.save_as(tmp_path / "latent.safetensors")
    encoded = load_encoded(tmp_path / "latent.safetensors")
    assert (encoded.height, encoded.width, tuple(encoded.mean.shape)) == (96, 128, (4, 12, 16))


def test_models_examples_and_a_folder(open_page: "Callable[..., Page]", tmp_path: Path) -> None:
    page = open_page()
    page.locator("#models").get_by_text("bicubic:8").click()
    page.wait_for_selector("#table tbody tr:nth-child(3)")
    changes(page, "#slider", lambda: page.locator("#examples button").nth(1).press("Enter"))
    playwright.expect(page.locator("#table")).to_contain_text("photo-1.png: 192 x 128 pixels")
    tab(page, "Folder")
    page.get_by_role("button", name="Compare on the folder").click()
    page.wait_for_selector("#folder-table:has-text('2 crops of 2 images')")
    with page.expect_download() as download:
        page.locator("#report a[download]").first.click()
    download.value.save_as(tmp_path / "report.html")
    assert "bicubic:8" in (tmp_path / "report.html").read_text()


def test_a_model_that_is_chosen_meanwhile_stays_chosen(
    open_page: "Callable[..., Page]", tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = open_page()
    shown = page.locator("#table tr.shown th")
    playwright.expect(shown).to_contain_text(tiny_model.name)
    begun, go_on = threading.Event(), threading.Event()

    def slow_compare(*args: object) -> Comparison:
        begun.set()
        assert go_on.wait(60)
        return compare(*args)

    monkeypatch.setattr("ssdd.app.page.compare", slow_compare)
    press(page, "#steps", "ArrowRight")
    assert begun.wait(60)
    page.locator("#shown").get_by_text("JPEG, same bytes").click()
    playwright.expect(shown).to_contain_text("JPEG")
    go_on.set()
    playwright.expect(page.locator("#table tbody tr td:nth-child(6)").first).to_have_text("2")
    playwright.expect(shown).to_contain_text("JPEG")
    playwright.expect(page.locator("#shown input:checked")).to_have_value("JPEG, same bytes")


def bomb() -> bytes:
    """Return a PNG file of a few bytes that says that it has 900 million pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(100_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


HOSTILE = {
    "bomb.png": (bomb, "at most 16777216 pixels"),
    "truncated.png": (lambda: png(np.full((64, 64, 3), 7, np.uint8))[:-30], "expected a complete image"),
    "noise.png": (lambda: np.random.default_rng(0).bytes(50 << 20), "maximum allowed size"),
    "small.png": (lambda: np.random.default_rng(0).bytes(1 << 20), "expected an image"),
    "drawing.svg": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", "expected an image"),
    "<img src=x onerror=alert(1)>.png": (lambda: b"<html><script>alert(1)</script></html>", "expected an image"),
    "tiny.png": (lambda: png(np.zeros((8, 8, 3), np.uint8)), "at least 32 pixels"),
}


def test_hostile_uploads_are_named_on_the_page(
    open_page: "Callable[..., Page]", served: Served, tmp_path: Path
) -> None:
    page = open_page()
    dialogs: list[str] = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    before = sources(page, "#slider")
    for name, (content, expected) in HOSTILE.items():
        (tmp_path / name).write_bytes(content())
        upload(page, tmp_path / name)
        toast = page.get_by_test_id("toast-body").last
        toast.wait_for()
        playwright.expect(toast).to_contain_text(expected)
        toast.get_by_test_id("toast-close").click()
        page.get_by_test_id("toast-body").wait_for(state="detached")
    assert sources(page, "#slider") == before, "what was there is lost"
    assert not dialogs, "an upload became a script"
    kept = {path.name for path in served.cache.rglob("*") if path.is_file() and path.stat().st_size}
    assert not kept & {"mine.png", *HOSTILE}, "an upload is kept"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1600])
def test_it_fits(open_page: "Callable[..., Page]", width: int, scheme: str) -> None:
    page = open_page(width, scheme)
    for name in ("Zoom", "Compare"):
        tab(page, name)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{name} is wider than the window"
    text, ground = page.evaluate(
        "[getComputedStyle(document.querySelector('#table td')).color, getComputedStyle(document.body).backgroundColor]"
    )
    bright = [sum(map(int, re.findall(r"\d+", color)[:3])) / 765 for color in (text, ground)]
    assert abs(bright[0] - bright[1]) > 0.6, f"hard to read: {text} on {ground}"
