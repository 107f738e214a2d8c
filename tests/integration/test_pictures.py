"""Pictures that people judge: true proportions, letters, bars, colours, no word about a patient, odd sizes too."""

from __future__ import annotations

import zlib
from datetime import UTC, datetime

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pydicom import Dataset

from ctnode.config import Outputs, Pipeline
from ctnode.ct.coarse import AIRWAY, LEFT, RIGHT
from ctnode.ct.grid import Grid, Volume
from ctnode.ct.lungs import Lungs, segment
from ctnode.ct.measure import measure
from ctnode.ct.phantom import chest
from ctnode.ct.window import LUNG
from ctnode.results import canvas
from ctnode.results.case import Case, Stage
from ctnode.results.mesh import BONE, meshes
from ctnode.results.raster import Mesh, render, view_axes
from ctnode.results.writers import histogram, lungs, mpr, preview, surface, wanted_writers
from ctnode.words import LungStatus, VolumeStatus

pytestmark = pytest.mark.integration

PICTURES = {"preview": preview, "mpr": mpr, "lungs": lungs, "histogram": histogram, "surface": surface}
BAR = (255, 255, 255)


def case_of(folder, voxels, grid, *, header=None, found=None):
    volume = Volume(
        voxels, grid, None, "HU", VolumeStatus.EXACT, (), header or Dataset(), ("",) * len(voxels), "ab" * 32
    )
    found = segment(volume) if found is None else found(volume)
    folder.mkdir(exist_ok=True)
    return Case(
        volume, Outputs(iso=False), Pipeline(), "1.2.3", "1.2.4", 1, datetime(2020, 1, 1, tzinfo=UTC), "d", folder,
        lungs=found, measurements=measure(volume, found),
    )  # fmt: skip


def placed_in(case, folder):
    folder.mkdir(exist_ok=True)
    values = {name: getattr(case, name) for name in Case.__slots__}
    return Case(**{**values, "folder": folder})


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    header = Dataset()
    header.PatientName = "ZQXCANARY^NAME"
    header.PatientID = "ZQXCANARY7"
    header.StudyDescription = "ZQXCANARY study"
    voxels, _, grid = chest((75, 128, 120), (4.0, 3.0, 3.0), 1)
    return case_of(tmp_path_factory.mktemp("case"), voxels, grid, header=header)


@pytest.fixture(scope="module")
def files(example, tmp_path_factory):
    return written(example, tmp_path_factory.mktemp("files"))


def written(case, folder):
    """Return the pictures of ``case`` by name; those that are not available are missing."""
    here = placed_in(case, folder)
    for writer in PICTURES.values():
        if writer.available(here):
            writer.write(here)
    return {path.name: path for path in sorted(folder.glob("*.png"))}


def chunks(content):
    place, found = 8, []
    while place < len(content):
        length = int.from_bytes(content[place : place + 4], "big")
        found.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + length]))
        place += 12 + length
    return found


def rows_of(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def longest_bar(pixels):
    """Return the length of the longest run of the colour of scale bars, two pixels high, above darker ones."""
    white = (pixels == BAR).all(axis=2)
    longest = 0
    for row in range(white.shape[0] - 1):
        both = np.concatenate([[0], (white[row] & white[row + 1]).astype(int), [0]])
        steps = np.flatnonzero(np.diff(both))
        longest = max(longest, int((steps[1::2] - steps[::2]).max(initial=0)))
    return longest


def test_pictures_are_the_same_bytes_twice_and_have_no_chunk_for_words(tmp_path, example, files):
    first, second = files, written(example, tmp_path / "b")
    assert set(first) == {"preview.png", "mpr.png", "lungs.png", "histogram.png", "surface.png"}
    for name, path in first.items():
        content = path.read_bytes()
        assert content == second[name].read_bytes(), name
        assert {kind for kind, _ in chunks(content)} == {b"IHDR", b"IDAT", b"IEND"}, name
        whole = zlib.decompress(b"".join(data for kind, data in chunks(content) if kind == b"IDAT"))
        assert b"CANARY" not in content + whole


def test_no_word_of_the_header_is_drawn(tmp_path, example, monkeypatch):
    drawn = []
    plain = ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw,
        "text",
        lambda self, at, text, *a, **k: (drawn.append(text), plain(self, at, text, *a, **k))[1],
    )
    written(example, tmp_path / "out")
    assert any("window" in text for text in drawn)
    assert not [text for text in drawn if "CANARY" in text or "1.2.3" in text]


@pytest.mark.parametrize("spacing", [(5.0, 0.7, 0.7), (1.0, 2.0, 0.5), (0.5, 1.0, 3.0)])
@pytest.mark.parametrize("direction", ["axial", "coronal", "sagittal"])
def test_a_ball_is_round_in_every_plane(spacing, direction):
    shape = tuple(round(120.0 / step) for step in spacing)
    at = np.ix_(*((np.arange(size) - (size - 1) / 2) * step for size, step in zip(shape, spacing, strict=True)))
    voxels = np.where(sum(axis**2 for axis in at) < 40.0**2, 1000, -1000).astype(np.int16)
    grid = Grid(shape, np.diag([spacing[2], spacing[1], spacing[0], 1.0]))
    volume = Volume(voxels, grid, None, "HU", VolumeStatus.EXACT, (), Dataset(), ("",) * shape[0], "")
    views = canvas.Views.of(volume)
    picture = canvas.tile(views, direction, views.count(direction) // 2, (480, 480), LUNG, letters=False)
    bright = np.asarray(picture.convert("L")) > 127
    tall, wide = (np.flatnonzero(bright.any(axis=axis)).size for axis in (1, 0))
    assert tall == pytest.approx(320, abs=4.0 * 480 / 120)
    assert wide == pytest.approx(tall, rel=0.09)


@pytest.mark.parametrize("name", ["preview", "mpr", "lungs", "surface"])
def test_the_scale_bar_is_as_long_as_it_says(tmp_path, monkeypatch, example, name):
    bars = []
    plain = canvas.scale_bar

    def noted(draw, corner, per_mm, **more):
        bars.append(per_mm)
        plain(draw, corner, per_mm, **more)

    for module in (mpr, surface, __import__("ctnode.results.png", fromlist=["x"])):
        monkeypatch.setattr(module, "scale_bar", noted)
    here = placed_in(example, tmp_path / "out")
    PICTURES[name].write(here)
    assert bars
    lengths = {round(canvas.bar_length_mm(per_mm, 1 << 16) * per_mm) for per_mm in bars}
    page = Image.new("RGB", (400, 60))
    plain(ImageDraw.Draw(page), (20, 40), bars[0])
    assert longest_bar(np.asarray(page).astype(int)) == round(50 * bars[0])
    pixels = rows_of(tmp_path / "out" / f"{name}.png")
    # The bar is really in the picture: a run of its exact length.
    assert any(has_run(pixels, length) for length in lengths)


def has_run(pixels, length):
    white = (pixels == BAR).all(axis=2)
    for row in white[:-1] & white[1:]:
        steps = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(int), [0]])))
        if length in (steps[1::2] - steps[::2]):
            return True
    return False


def test_the_scale_of_each_picture_is_that_of_the_body(example):
    # 120 columns of 3 mm: the axial plane of mpr.png is as wide as its scale says.
    views = canvas.Views.of(example.volume)
    assert views.size_mm("axial") == (384.0, 360.0)
    assert views.size_mm("coronal") == (300.0, 360.0)
    page = mpr.draw(example.volume)
    frames = {way: np.argwhere((np.asarray(page) == colour).all(axis=2)) for way, colour in mpr._LINES.items()}
    per_mm = (page.width - 2 * canvas.MARGIN - 2 * mpr._GAP) / (360.0 + 360.0 + 384.0)
    left = frames["axial"][:, 1].min()
    row = np.asarray(page)[int(frames["axial"][:, 0].min())]
    run = np.flatnonzero((row == mpr._LINES["axial"]).all(axis=1))
    assert run[0] == left
    assert run[-1] - run[0] - 1 == pytest.approx(360.0 * per_mm, abs=2)


@pytest.mark.parametrize("direction", ["axial", "coronal", "sagittal"])
def test_letters_stand_on_all_four_sides(monkeypatch, example, direction):
    drawn = {}
    monkeypatch.setattr(canvas, "note", lambda _draw, at, text, **_: drawn.__setitem__(text, at))
    views = canvas.Views.of(example.volume)
    canvas.tile(views, direction, 10, (300, 300), LUNG)
    expected = {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}[direction]
    assert set(drawn) == set(expected)
    left, right, top, bottom = (drawn[letter] for letter in expected)
    assert left[0] < 150 < right[0]
    assert top[1] < 150 < bottom[1]


def test_the_cross_marks_the_same_point_in_all_planes():
    voxels = np.full((40, 60, 50), -1000, dtype=np.int16)
    voxels[28:33, 38:43, 8:13] = 300
    grid = Grid(voxels.shape, np.diag([2.0, 2.0, 2.0, 1.0]))
    volume = Volume(voxels, grid, None, "HU", VolumeStatus.EXACT, (), Dataset(), ("",) * 40, "")
    assert mpr.middle(canvas.Views.of(volume)) == (30, 40, 10)
    page = np.asarray(mpr.draw(volume))
    bright = (page.min(axis=2) > 180)[60:-40]
    # The middle of each cross is left free, so that the bright block shows there, in three places.
    columns = np.flatnonzero(bright.any(axis=0))
    assert np.count_nonzero(np.diff(columns) > 60) >= 2


def test_sides_keep_their_colours_in_contours_and_surfaces(files):
    pixels = rows_of(files["lungs.png"])[60:370, 14:414]
    right = np.nonzero((pixels == canvas.COLOURS[RIGHT]).all(axis=2))[1]
    left = np.nonzero((pixels == canvas.COLOURS[LEFT]).all(axis=2))[1]
    assert right.mean() < 200 < left.mean()
    # In front the patient's right is to the left, from behind it is to the right.
    page = rows_of(files["surface.png"])[60:]
    warm = (page[..., 0] > 1.6 * page[..., 2]) & (page[..., 0] > 90) & (page[..., 1] < 0.85 * page[..., 0])
    cold = (page[..., 2] > 1.3 * page[..., 0]) & (page[..., 2] > 90)
    quarter = page.shape[1] // 4
    for part, sign in ((slice(0, quarter), 1), (slice(2 * quarter, 3 * quarter + 40), -1)):
        middle = [np.nonzero(colour[:, part])[1].mean() for colour in (warm, cold)]
        assert sign * (middle[1] - middle[0]) > 20


@pytest.mark.parametrize("name", ["lungs.png", "histogram.png", "surface.png"])
def test_doubtful_lungs_say_why(tmp_path, monkeypatch, example, files, name):
    drawn = []
    plain = ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw,
        "text",
        lambda self, at, text, *a, **k: (drawn.append(text), plain(self, at, text, *a, **k))[1],
    )
    lungs_found = example.lungs
    doubtful = Lungs(
        lungs_found.labels,
        LungStatus.SUSPECT,
        ("first reason", "second " * 60),
        lungs_found.quality,
        lungs_found.threshold_hu,
    )
    values = {slot: getattr(example, slot) for slot in Case.__slots__}
    here = Case(**{**values, "folder": tmp_path, "lungs": doubtful})
    (writer,) = [PICTURES[name.removesuffix(".png")]]
    writer.write(here)
    assert "SUSPECT" in drawn
    assert "first reason" in drawn
    assert " ".join(text for text in drawn if text.startswith("second")).split().count("second") == 60
    with Image.open(tmp_path / name) as picture:
        for text in drawn:
            assert canvas.font(15).getlength(text) <= picture.width, text
    with Image.open(tmp_path / name) as marked, Image.open(files[name]) as unmarked:
        assert marked.height > unmarked.height


@pytest.mark.parametrize("shape", [(1, 40, 30), (2, 64, 64), (40, 3, 64), (40, 64, 3), (300, 8, 8), (1, 1, 1)])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (8.0, 0.4, 0.9)])
def test_odd_sizes_have_pictures(tmp_path, shape, spacing):
    voxels = np.full(shape, -800, dtype=np.int16)
    voxels[..., : shape[2] // 2] = 40
    grid = Grid(shape, np.diag([spacing[2], spacing[1], spacing[0], 1.0]))
    labels = np.zeros(shape, dtype=np.uint8)
    labels.flat[0] = RIGHT
    found = Lungs(labels, LungStatus.SUSPECT, ("odd",), {}, float("nan"))
    case = case_of(tmp_path / "out", voxels, grid, found=lambda _volume: found)
    assert set(written(case, tmp_path / "out")) == {
        "preview.png",
        "mpr.png",
        "lungs.png",
        "histogram.png",
        "surface.png",
    }


def test_float_volumes_of_another_unit_have_planes(tmp_path):
    voxels = np.linspace(0.0, 3.0, 8 * 16 * 16, dtype=np.float32).reshape(8, 16, 16)
    case = case_of(tmp_path / "out", voxels, Grid(voxels.shape, np.eye(4)))
    assert "mpr.png" in written(case, tmp_path / "out")


def test_without_lungs_there_is_no_picture_of_them(tmp_path):
    voxels = np.full((20, 64, 64), -1000, dtype=np.int16)
    voxels[:, 16:48, 16:48] = 40
    case = case_of(tmp_path / "out", voxels, Grid(voxels.shape, np.diag([4.0, 4.0, 4.0, 1.0])))
    assert case.lungs.status is LungStatus.NO_LUNGS
    assert set(written(case, tmp_path / "out")) == {"preview.png", "mpr.png"}


@pytest.mark.parametrize("key", ["preview", "mpr", "histogram", "surface"])
def test_each_picture_has_its_key(key):
    on = {writer.__name__.rpartition(".")[2] for writer in wanted_writers(Outputs())}
    off = {writer.__name__.rpartition(".")[2] for writer in wanted_writers(Outputs(**{key: False}))}
    assert on - off == {key}


def test_surfaces_lie_where_the_lungs_are(example):
    found = meshes(example.volume, example.lungs.labels)
    assert set(found) == {RIGHT, LEFT, AIRWAY, BONE}
    assert found[RIGHT].points[:, 0].mean() < found[AIRWAY].points[:, 0].mean() < found[LEFT].points[:, 0].mean()
    for label in (RIGHT, LEFT):
        corners = found[label].points[found[label].faces].astype(np.float64)
        volume_ml = abs(np.einsum("ij,ij->i", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])).sum()) / 6000.0
        truth = np.count_nonzero(example.lungs.labels == label) * example.volume.grid.voxel_ml
        assert volume_ml == pytest.approx(truth, rel=0.06)
        # Normals point out of the lung.
        middle = found[label].points.mean(axis=0)
        assert (np.einsum("ij,ij->i", found[label].points - middle, found[label].normals) > 0).mean() > 0.8


def ball(center, radius):
    """Return a sphere as a mesh."""
    along, around = np.meshgrid(np.linspace(0, np.pi, 40), np.linspace(0, 2 * np.pi, 80), indexing="ij")
    normals = np.stack([np.sin(along) * np.cos(around), np.sin(along) * np.sin(around), np.cos(along)], -1).reshape(
        -1, 3
    )
    index = np.arange(40 * 80).reshape(40, 80)
    a, b, c, d = index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]
    faces = np.concatenate([np.stack([a, b, c], -1).reshape(-1, 3), np.stack([a, c, d], -1).reshape(-1, 3)])
    return Mesh(
        (np.array(center) + radius * normals).astype(np.float32), faces.astype(np.int32), normals.astype(np.float32)
    )


@pytest.mark.parametrize("azimuth", [0.0, 90.0, 180.0, -90.0, 33.0])
def test_a_ball_is_drawn_as_a_disc_at_its_true_depth(azimuth):
    axes = view_axes(azimuth)
    center = np.array([3.0, -5.0, 7.0])
    seen = axes @ center
    layer = render(ball(center, 20.0), axes, (float(seen[0]) - 30.0, float(seen[1]) - 30.0), 2.0, (120, 120))
    shown = np.isfinite(layer.depth_mm)
    assert np.count_nonzero(shown) == pytest.approx(np.pi * 40.0**2, rel=0.02)
    assert shown[59, 59]
    assert layer.depth_mm[59, 59] == pytest.approx(float(seen[2]) - 20.0, abs=0.2)
    assert layer.facing[59, 59] == pytest.approx(1.0, abs=0.01)
    across = np.abs(np.arange(120) - 59.5) / 2.0
    inside = across < 19.0
    np.testing.assert_allclose(
        layer.depth_mm[59, inside], float(seen[2]) - np.sqrt(400.0 - across[inside] ** 2), atol=0.5
    )


def test_the_nearer_of_two_balls_hides_the_other():
    near, far = ball((0.0, -30.0, 0.0), 10.0), ball((0.0, 30.0, 0.0), 10.0)
    both = Mesh(
        np.concatenate([far.points, near.points]), np.concatenate([far.faces, near.faces + len(far.points)]),
        np.concatenate([far.normals, near.normals]),
    )  # fmt: skip
    layer = render(both, view_axes(0.0), (-15.0, -15.0), 2.0, (60, 60))
    assert layer.depth_mm[30, 30] == pytest.approx(-40.0, abs=0.2)


def test_the_histogram_counts_what_was_measured(example):
    curve = histogram.counted(example.volume)
    planes = example.volume.voxels
    inside = (planes >= -1024) & (planes < 1000)
    assert curve.sum() == np.count_nonzero(inside)
    padded = np.zeros(planes.shape, dtype=bool)
    padded[:, :40] = True
    part = Volume(planes, example.volume.grid, padded, "HU", VolumeStatus.EXACT, (), Dataset(), (), "")
    assert histogram.counted(part).sum() == np.count_nonzero(inside & ~padded)


def test_the_thresholds_are_marked(monkeypatch, example):
    drawn = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda _self, _at, text, *_a, **_k: drawn.append(text))
    histogram.draw(example.volume, example.lungs, example.measurements.histogram)
    assert {"LAA -950", "HAA -600", f"threshold {round(example.lungs.threshold_hu)}"} <= set(drawn)


def test_stages_are_those_of_what_is_needed():
    assert (preview.AFTER, mpr.AFTER) == (Stage.VOLUME, Stage.VOLUME)
    assert {writer.AFTER for writer in (lungs, histogram, surface)} == {Stage.LUNGS}
