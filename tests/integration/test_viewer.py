"""The viewer: planes out of published files, where they lie, and the picture that a browser makes of them."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from isal import igzip
from starlette.testclient import TestClient

from ctnode.ct.grid import Grid
from ctnode.ct.window import PRESETS, apply
from ctnode.results.nifti import write_nifti
from ctnode.web.volumes import NoVolume, Unpacked, Volumes
from tests.phantom_series import GRADIENT, ramp
from tests.published_root import SERIES, STUDY, PublishedRoot, write_chest

pytestmark = pytest.mark.integration

CHROMIUM = Path("/usr/bin/chromium")
PAGE = f"/viewer/{STUDY}/{SERIES}"


def turned(order: tuple[int, ...], signs: tuple[int, ...]) -> Grid:
    """Return a grid whose axes run along the patient's in this order and sense, tilted by three degrees."""
    angle = np.radians(3.0)
    tilt = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    affine = np.zeros((4, 4))
    affine[3, 3] = 1.0
    for column, (axis, sign, spacing) in enumerate(zip(order, signs, (0.7, 0.8, 2.5), strict=True)):
        affine[axis, column] = sign * spacing
    affine[:3, :3] = tilt @ affine[:3, :3]
    affine[:3, 3] = (-20.0, -15.0, 30.0)
    return Grid((5, 7, 9), affine)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1), (1, -1, 1), (-1, -1, -1)])
def test_each_value_lies_where_the_geometry_says_and_each_plane_is_seen_from_the_usual_side(
    tmp_path: Path, order: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    grid = turned(order, signs)
    path = tmp_path / "ct.nii.gz"
    write_nifti(path, ramp(grid), grid, description="")
    volume = Unpacked(path, tmp_path)
    matrix = np.array(volume.geometry.matrix)
    columns, rows, planes = volume.geometry.shape

    def expected(i, j, k) -> np.ndarray:
        i, j, k = np.broadcast_arrays(i, j, k)
        mm = np.tensordot(matrix, np.stack([i, j, k, np.ones_like(i)]), axes=1)
        return np.tensordot(GRADIENT, mm, axes=1)

    across, down, up = np.arange(columns), np.arange(rows), np.arange(planes)[::-1]
    axial = expected(across[None, :], down[:, None], 2)
    coronal = expected(across[None, :], 3, up[:, None])
    sagittal = expected(1, down[None, :], up[:, None])

    assert volume.plane("axial", 2) == pytest.approx(axial, abs=1e-3)
    assert volume.plane("coronal", 3) == pytest.approx(coronal, abs=1e-3)
    assert volume.plane("sagittal", 1) == pytest.approx(sagittal, abs=1e-3)
    assert np.diag(matrix)[:3] == pytest.approx(volume.geometry.spacing_mm, rel=2e-3)
    assert volume.geometry.tilt_deg == pytest.approx(3.0, abs=1e-3)


def test_a_volume_that_is_damaged_cut_off_or_none_of_ours_is_refused_in_words(tmp_path: Path) -> None:
    grid = turned((0, 1, 2), (1, 1, 1))
    whole = tmp_path / "whole.nii.gz"
    write_nifti(whole, ramp(grid), grid, description="")
    plain = igzip.decompress(whole.read_bytes())
    volumes = Volumes(tmp_path)

    def refusal(content: bytes) -> str:
        path = tmp_path / "broken.nii.gz"
        path.write_bytes(content)
        with pytest.raises(NoVolume) as refused:
            volumes.open(path).plane("axial", 4)
        os.unlink(path)
        return str(refused.value)

    assert refusal(igzip.compress(plain[:-1])) == "the file is damaged"
    assert refusal(whole.read_bytes()[:-200]) == "the file is damaged"
    assert refusal(b"no gzip at all" * 100) == "the volume cannot be read"
    assert refusal(igzip.compress(b"\0" * 500)) == "the file is no NIfTI of this node"
    assert (
        refusal(igzip.compress(plain[:280] + b"\0" * 48 + plain[328:])) == "the file does not say where its voxels lie"
    )
    with pytest.raises(NoVolume, match="no such volume"):
        volumes.open(tmp_path / "absent.nii.gz")
    with pytest.raises(NoVolume, match="no room"):
        Volumes(tmp_path, reserve_bytes=1 << 62).open(whole)
    with pytest.raises(NoVolume, match="there are 5 axial planes"):
        volumes.open(whole).plane("axial", 5)


def test_volumes_that_no_longer_fit_are_let_go_and_republished_ones_are_read_anew(tmp_path: Path) -> None:
    grid = turned((0, 1, 2), (1, 1, 1))
    volumes = Volumes(tmp_path, most_bytes=2000)
    paths = [tmp_path / f"{number}.nii.gz" for number in range(3)]
    for number, path in enumerate(paths):
        write_nifti(path, np.full(grid.shape, number, np.int16), grid, description="")
    first = volumes.open(paths[0])
    assert volumes.open(paths[0]) is first
    assert [volumes.open(path).plane("axial", 0)[0, 0] for path in paths] == [0, 1, 2]
    assert volumes.open(paths[0]) is not first
    assert first.plane("axial", 4)[0, 0] == 0
    write_nifti(paths[0], np.full(grid.shape, 7, np.int16), grid, description="")
    assert volumes.open(paths[0]).plane("axial", 0)[0, 0] == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.nii.gz", "1.nii.gz", "2.nii.gz"]


class Chest:
    """A chest with published results, and the page of its node."""

    def __init__(self, place: Path) -> None:
        self.root = PublishedRoot(place / "node")
        files, self.voxels, self.grid = write_chest(place / "sent")
        self.root.bring(*files)
        self.folder = self.root.process(1)
        self.client = TestClient(self.root.app(), base_url="http://127.0.0.1")

    def plane(self, name: str, kind: str, index: int, dtype: str) -> np.ndarray:
        answer = self.client.get(f"{PAGE}/r1/{name}/{kind}/{index}")
        assert answer.status_code == 200, answer.text
        assert answer.headers["cache-control"] == "no-store"
        return np.frombuffer(answer.content, dtype)


@pytest.fixture(scope="module")
def chest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chest]:
    made = Chest(tmp_path_factory.mktemp("viewer"))
    yield made
    made.root.close()


def test_planes_are_the_values_of_the_published_file(chest: Chest) -> None:
    assert np.array_equal(chest.plane("ct", "axial", 20, "<i2").reshape(96, 96), chest.voxels[20])
    assert np.array_equal(chest.plane("ct", "coronal", 50, "<i2").reshape(40, 96), chest.voxels[::-1, 50])
    assert np.array_equal(chest.plane("ct", "sagittal", 30, "<i2").reshape(40, 96), chest.voxels[::-1, :, 30])
    assert {1, 2} <= set(chest.plane("lungs", "axial", 20, "u1"))


def test_the_page_says_what_it_shows_and_lets_no_word_become_markup(chest: Chest) -> None:
    answer = chest.client.get(PAGE)
    assert answer.status_code == 200
    assert chest.client.get("/viewer/1").text == answer.text
    assert "volume: EXACT" in answer.text
    about = json.loads(unescape(answer.text.partition('data-about="')[2].partition('"')[0]))
    assert about["geometry"]["shape"] == [96, 96, 40]
    assert [grid["ct"] for grid in about["volumes"][0]["grids"]] == ["ct", "ct_iso"]
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert "<script>" not in answer.text
    assert " style=" not in answer.text


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (f"{PAGE}?revision=x", 400),
        (f"{PAGE}?revision=9", 404),
        (f"/viewer/{STUDY}/1.2.3", 404),
        ("/viewer/99", 404),
        (f"/viewer/{STUDY}/{quote('<script>', safe='')}", 404),
        (f"{PAGE}/r1/measurements", 404),
        (f"{PAGE}/r1/ct_9", 404),
        (f"{PAGE}/r2/ct", 404),
        (f"{PAGE}/r1/ct/oblique/1", 404),
        (f"{PAGE}/r1/ct/axial/40", 404),
        (f"{PAGE}/r1/{quote('../../ct', safe='')}/axial/1", 404),
    ],
)
def test_what_is_not_there_is_said_to_be_missing(chest: Chest, path: str, status: int) -> None:
    answer = chest.client.get(path)
    assert answer.status_code == status
    assert "<script>" not in answer.text


def test_a_series_without_a_volume_says_why(tmp_path: Path) -> None:
    root = PublishedRoot(tmp_path / "node")
    files, _, _ = write_chest(tmp_path / "sent")
    root.bring(files[0])
    answer = TestClient(root.app(), base_url="http://127.0.0.1").get(PAGE)
    root.close()
    assert answer.status_code == 200
    assert "There is no volume to show" in answer.text
    assert "RECEIVING" in answer.text


def test_a_browser_shows_exact_greys_links_its_planes_and_obeys_the_keyboard(chest: Chest) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is not installed")
    faults: list[str] = []
    with chest.root.served() as address, playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(f"{address}{PAGE}")
        page.wait_for_selector('[data-plane="sagittal"][data-lungs="true"]')
        shades = page.evaluate(
            "async () => { const { grey } = await import('/static/viewer.js');"
            f" return {json.dumps([[one.center_hu, one.width_hu] for one in PRESETS.values()])}.map(([c, w]) =>"
            " Array.from({ length: 65536 }, (_, at) => grey(at - 32768, c, w))); }"
        )
        first = page.inner_text("#value")
        axial = page.locator('[data-plane="axial"] canvas')
        axial.focus()
        page.keyboard.press("PageUp")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("2")
        page.keyboard.press("l")
        page.wait_for_selector('[data-plane="axial"][data-shown="21"][data-lungs="false"]')
        page.wait_for_selector('[data-plane="sagittal"][data-shown="49"]')
        moved = page.inner_text("#value")
        pressed = page.get_attribute('[data-preset="2"]', "aria-pressed")
        box = page.locator('[data-plane="coronal"] canvas').bounding_box()
        assert box is not None
        page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 4)
        page.wait_for_selector('[data-plane="axial"]:not([data-shown="21"])')
        page.set_viewport_size({"width": 390, "height": 844})
        overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        browser.close()

    values = np.arange(-32768, 32768).astype(np.int16)
    for made, window in zip(shades, PRESETS.values(), strict=True):
        assert np.array_equal(np.array(made, np.uint8), apply(values, window))
    assert f"{chest.voxels[20, 48, 48]} HU".replace("-", "−") in first
    assert f"{chest.voxels[21, 48, 49]} HU".replace("-", "−") in moved
    assert "voxel 49 48 21" in moved
    assert pressed == "true"
    assert overflow <= 0
    assert faults == []
