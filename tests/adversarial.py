"""Series that readers get wrong, over the ramp phantom HU = x - 2y + 3z (patient millimetres, LPS).

Each case writes files into a folder and returns what an honest reader answers: the exact volume, a repaired one that
says so, or a refusal. Every voxel that is not marked as padding then differs from the formula, at the place that the
volume's own affine claims for it, by at most ``Expectation.worst_hu``.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)
from pydicom.valuerep import format_number_as_ds

from ctnode.ct.grid import Grid
from ctnode.ct.phantom_dicom import write_series
from tests import htj2k

STUDY = "1.2.826.0.1.3680043.8.498.4"
SERIES = "1.2.826.0.1.3680043.8.498.4.1"
GRADIENT = np.array([1.0, -2.0, 3.0])
AXIAL = (1.0, 0, 0, 0, 1, 0)
CORONAL = (1.0, 0, 0, 0, 0, -1)
SAGITTAL = (0.0, 1, 0, 0, 0, -1)
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
LEGACY_CT = "1.2.840.10008.5.1.4.1.1.2.2"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


@dataclass(frozen=True)
class Expectation:
    """What an honest reader makes of a series.

    Parameters
    ----------
    status
        ``EXACT``, ``REPAIRED`` or ``REFUSED``.
    codes
        Issues that have to be named.
    worst_hu
        Largest difference from the formula.
    affine
        ``(4, 4)`` voxel centres ``(i, j, k)`` to LPS millimetres, None where a reader may choose.
    shape
        ``(z, y, x)``, None where a reader may choose.
    special
        Values that the formula does not give, by LPS millimetres of the voxel.
    """

    status: str = "EXACT"
    codes: frozenset[str] = frozenset()
    worst_hu: float = 0.5
    affine: np.ndarray | None = None
    shape: tuple[int, int, int] | None = None
    special: Mapping[tuple[float, float, float], float] = field(default_factory=dict)


Case = Callable[[Path], Expectation]
Edit = Callable[[int, Dataset], None]
CASES: dict[str, Case] = {}


def case(function: Case) -> Case:
    CASES[function.__name__] = function
    return function


@dataclass(frozen=True)
class Stack:
    """Slices at any place: ``positions`` ``(n, 3)`` LPS millimetres of the first voxel of each."""

    positions: np.ndarray
    orientation: tuple[float, ...] = AXIAL
    spacing: tuple[float, float] = (0.8, 0.7)
    size: tuple[int, int] = (40, 36)
    thickness: float = 2.5

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.positions), *self.size

    def voxels(self) -> np.ndarray:
        row, column = np.reshape(self.orientation, (2, 3))
        j, i = np.meshgrid(*(np.arange(side) for side in self.size), indexing="ij")
        plane = i[..., None] * row * self.spacing[1] + j[..., None] * column * self.spacing[0]
        return np.stack([(plane + position) @ GRADIENT for position in self.positions]).astype(np.float32)

    def affine(self) -> np.ndarray:
        row, column = np.reshape(self.orientation, (2, 3))
        affine = np.eye(4)
        affine[:3, 0], affine[:3, 1] = row * self.spacing[1], column * self.spacing[0]
        count = len(self.positions)
        affine[:3, 2] = (self.positions[-1] - self.positions[0]) / max(1, count - 1)
        affine[:3, 3] = self.positions[0]
        return affine


def stack(
    depths=None, orientation=AXIAL, origin=(-20.0, -15.0, 30.0), drift=(0.0, 0.0), count=24, step=2.5, **options
) -> Stack:
    """Return slices at ``depths`` along the normal, moved in their plane by ``drift`` millimetres per millimetre."""
    row, column = np.reshape(orientation, (2, 3)).astype(float)
    depths = np.arange(count) * step if depths is None else np.asarray(depths, dtype=float)
    along = np.cross(row, column) + drift[0] * row + drift[1] * column
    return Stack(np.array(origin) + depths[:, None] * along, tuple(orientation), **options)


def write(place: Path, slices: Stack, edit: Edit | None = None, series: str = SERIES, mark: str = "", **options):
    """Write ``slices`` as single-frame CT images; ``mark`` keeps SOP Instance UIDs of several calls apart."""
    folder = place / (mark or "0")
    folder.mkdir(parents=True)

    def placed(index: int, dataset: Dataset) -> None:
        dataset.ImagePositionPatient = [format_number_as_ds(float(v)) for v in slices.positions[index]]
        dataset.ImageOrientationPatient = [format_number_as_ds(float(v)) for v in slices.orientation]
        dataset.PixelSpacing = [format_number_as_ds(float(v)) for v in slices.spacing]
        dataset.SliceThickness = format_number_as_ds(slices.thickness)
        if mark:
            dataset.SOPInstanceUID = generate_uid(entropy_srcs=[series, mark, str(index)])
        if edit is not None:
            edit(index, dataset)

    grid = Grid(slices.shape, np.eye(4))
    options = {"study_uid": STUDY, "series_uid": series, **options}
    return write_series(folder, slices.voxels(), grid, edit=placed, **options)


def exact(slices: Stack, *codes: str, **options) -> Expectation:
    options = {"affine": slices.affine(), "shape": slices.shape, **options}
    return Expectation(codes=frozenset(codes), **options)


def repaired(*codes: str, worst_hu: float = 1.0, **options) -> Expectation:
    return Expectation("REPAIRED", frozenset(codes), worst_hu, **options)


def refused(*codes: str) -> Expectation:
    return Expectation("REFUSED", frozenset(codes))


def setting(**values) -> Edit:
    def edit(_index: int, dataset: Dataset) -> None:
        for keyword, value in values.items():
            setattr(dataset, keyword, value)

    return edit


def stored(dataset: Dataset) -> np.ndarray:
    kind = np.int16 if dataset.PixelRepresentation else np.uint16
    return np.frombuffer(dataset.PixelData, kind).reshape(dataset.Rows, dataset.Columns).copy()


# Order


@case
def plain(place):
    write(place, stack())
    return exact(stack())


@case
def instance_numbers_shuffled(place):
    numbers = random.Random(1).sample(range(1, 25), 24)
    write(place, stack(), lambda k, d: setattr(d, "InstanceNumber", numbers[k]))
    return exact(stack())


@case
def file_names_shuffled(place):
    paths = write(place, stack())
    for path, name in zip(paths, random.Random(2).sample(range(24), 24), strict=True):
        path.rename(path.with_name(f"image{name}"))
    return exact(stack())


@case
def slice_locations_lie(place):
    write(place, stack(), lambda k, d: setattr(d, "SliceLocation", str(-3.0 * k)))
    return exact(stack())


@case
def spacing_between_slices_lies(place):
    write(place, stack(thickness=5.0), setting(SpacingBetweenSlices="-5"))
    return exact(stack())


@case
def stored_from_the_top(place):
    write(place, stack(np.arange(24)[::-1] * 2.5))
    return exact(stack())


@case
def rounded_positions(place):
    slices = stack(np.round(np.arange(24) * 0.703, 1), thickness=0.7)
    write(place, slices)
    return exact(slices, worst_hu=0.8, affine=None)


# Orientation and pixel spacing


@case
def coronal(place):
    write(place, stack(orientation=CORONAL))
    return exact(stack(orientation=CORONAL))


@case
def sagittal(place):
    write(place, stack(orientation=SAGITTAL))
    return exact(stack(orientation=SAGITTAL))


@case
def feet_first(place):
    slices = stack(orientation=(-1.0, 0, 0, 0, 1, 0))
    write(place, slices)
    return exact(slices)


@case
def rotated_in_plane(place):
    slices = stack(orientation=(0.8, 0.6, 0, -0.6, 0.8, 0))
    write(place, slices)
    return exact(slices)


@case
def oblique(place):
    slices = stack(orientation=(0.8, 0, 0.6, 0, 1, 0))
    write(place, slices)
    return exact(slices)


@case
def long_pixels(place):
    slices = stack(spacing=(0.5, 1.75))
    write(place, slices, setting(ImagerPixelSpacing=["1", "1"]))
    return exact(slices)


# Tilt, gaps, spacing


def _tilted(degrees: float, **options) -> Stack:
    return stack(drift=(0.0, float(np.tan(np.radians(degrees)))), **options)


@case
def tilt_15(place):
    write(place, _tilted(15), setting(GantryDetectorTilt="-15"))
    return repaired("TILT")


@case
def tilt_minus_20(place):
    write(place, _tilted(-20), setting(GantryDetectorTilt="0"))
    return repaired("TILT")


@case
def tilt_2(place):
    write(place, _tilted(2))
    return repaired("TILT")


@case
def tilt_both_ways(place):
    write(place, stack(drift=(0.13, -0.21)))
    return repaired("TILT")


@case
def tilt_of_coronal_slices(place):
    write(place, stack(orientation=CORONAL, drift=(0.0, 0.2)))
    return repaired("TILT")


@case
def tilt_with_padding(place):
    def edit(_index, dataset):
        pixels = stored(dataset)
        pixels[:6, :6] = -2000
        dataset.PixelData = pixels.tobytes()
        dataset.add_new("PixelPaddingValue", "SS", -2000)

    write(place, _tilted(12), edit, signed=True)
    return repaired("TILT")


@case
def tilt_with_unequal_spacing(place):
    depths = np.concatenate([np.arange(12) * 2.5, 27.5 + np.arange(1, 13) * 4.0])
    write(place, stack(depths, drift=(0.0, 0.3)))
    return repaired("TILT", "UNEQUAL_SPACING")


@case
def tilt_with_a_gap(place):
    write(place, stack(np.delete(np.arange(30), 9) * 2.5, drift=(0.0, 0.25)))
    return repaired("TILT", "MISSING_SLICES")


@case
def one_slice_missing(place):
    write(place, stack(np.delete(np.arange(24), 7) * 2.5))
    return repaired("MISSING_SLICES", affine=stack().affine(), shape=stack().shape)


@case
def too_many_slices_missing(place):
    write(place, stack(np.delete(np.arange(30), [7, 8, 9, 10, 11]) * 2.5))
    return repaired("MISSING_SLICES", "INCOMPLETE", affine=stack().affine(), shape=(30, 40, 36))


@case
def unequal_spacing(place):
    write(place, stack(np.cumsum(np.random.default_rng(3).uniform(1.5, 3.5, 24))))
    return repaired("UNEQUAL_SPACING")


@case
def spacing_that_changes_once(place):
    write(place, stack(np.concatenate([np.arange(12) * 2.0, 22 + np.arange(1, 13) * 3.0])))
    return repaired("UNEQUAL_SPACING")


@case
def a_hole_of_no_whole_number_of_slices(place):
    write(place, stack(np.concatenate([np.arange(12) * 2.5, 27.5 + 21.3 + np.arange(12) * 2.5])))
    return repaired("UNEQUAL_SPACING", "INCOMPLETE")


@case
def one_slice(place):
    write(place, stack(count=1))
    return repaired("SINGLE_SLICE", worst_hu=0.5)


@case
def two_slices(place):
    write(place, stack(count=2))
    return repaired("TOO_FEW_SLICES", worst_hu=0.5)


@case
def curved(place):
    slices = stack()
    bent = slices.positions.copy()
    bent[:, 0] += (np.arange(24) - 12) ** 2 / 20
    write(place, Stack(bent))
    return refused("CURVED")


@case
def a_pile_of_planes_that_slide(place):
    slices = stack()
    slid = slices.positions.copy()
    slid[12:, 0] += 4.0
    write(place, Stack(slid))
    return refused("CURVED")


# What does not belong


@case
def the_same_file_twice(place):
    for path in write(place, stack()):
        shutil.copy(path, path.with_suffix(".copy"))
    return exact(stack(), "DUPLICATE_FILE")


@case
def a_slice_twice(place):
    write(place, stack())
    write(place, stack(np.arange(5, 8) * 2.5), mark="again")
    return exact(stack(), "DUPLICATE_SLICE")


@case
def a_slice_twice_with_other_pixels(place):
    write(place, stack())
    write(place, stack(np.arange(5, 8) * 2.5), setting(RescaleIntercept="-900"), mark="other")
    return refused("AMBIGUOUS")


def _second(place: Path, **values) -> Expectation:
    """Write the same positions again with other pixels, told apart only by ``values``."""
    write(place, stack())
    write(place, stack(count=20), setting(RescaleIntercept="-900", **values), mark="second")
    return exact(stack(), "OTHER_ACQUISITION")


@case
def two_acquisitions(place):
    return _second(place, AcquisitionNumber=2)


@case
def two_times(place):
    return _second(place, TemporalPositionIdentifier=2)


@case
def two_cardiac_phases(place):
    return _second(place, NominalPercentageOfCardiacPhase=70.0)


@case
def two_energies(place):
    return _second(place, ImageType=["ORIGINAL", "PRIMARY", "AXIAL", "VMI"])


@case
def two_kernels(place):
    return _second(place, ConvolutionKernel="B70f")


@case
def two_passes_told_by_their_time(place):
    return _second(place, AcquisitionTime="120100")


def _second_pass(place: Path, offset_mm: float, **values) -> Expectation:
    """Write a second pass with other pixels, whose slices lie between those of the first."""
    write(place, stack())
    depths = np.arange(20) * 2.5 + offset_mm
    write(place, stack(depths), setting(RescaleIntercept="-900", **values), mark="second")
    return exact(stack(), "OTHER_ACQUISITION")


@case
def two_passes_just_beside_each_other(place):
    return _second_pass(place, 0.3, AcquisitionNumber=2)


@case
def two_passes_in_the_middle_of_each_other(place):
    return _second_pass(place, 1.25, AcquisitionNumber=2)


@case
def two_passes_beside_each_other_told_by_their_time(place):
    return _second_pass(place, 0.7, ContentTime="120100")


@case
def two_kernels_with_another_centre(place):
    write(place, stack())
    sharp = stack(count=20, origin=(-18.0, -15.0, 30.0))
    write(place, sharp, setting(ConvolutionKernel="B70f"), mark="sharp")
    return exact(stack(), "OTHER_ACQUISITION")


@case
def a_second_version_with_other_pixels(place):
    """The same SOP Instance UIDs with other pixels: a time tells them apart, but not which of them is meant."""

    def again(index, dataset):
        dataset.SOPInstanceUID = generate_uid(entropy_srcs=[SERIES, str(index)])
        dataset.RescaleIntercept, dataset.ContentTime = "-900", "120100"

    write(place, stack())
    write(place, stack(count=20), again, mark="again")
    return refused("AMBIGUOUS")


@case
def a_second_version_with_another_header(place):
    def again(index, dataset):
        dataset.SOPInstanceUID = generate_uid(entropy_srcs=[SERIES, str(index)])
        dataset.KVP = "80"

    write(place, stack())
    write(place, stack(count=20), again, mark="again")
    return exact(stack(), "DUPLICATE_SLICE")


@case
def a_second_version_with_a_value_that_nothing_can_read(place):
    def again(index, dataset):
        dataset.SOPInstanceUID = generate_uid(entropy_srcs=[SERIES, str(index)])
        dataset.KVP = "80"

    write(place, stack())
    for path in write(place, stack(count=20), again, mark="again"):
        path.write_bytes(path.read_bytes().replace(b"\x18\0\x60\0DS", b"\x18\0\x60\0XX"))
    return exact(stack(), "DUPLICATE_SLICE")


@case
def acquisitions_that_share_no_position(place):
    write(place, stack(), lambda k, d: setattr(d, "AcquisitionNumber", k // 6 + 1))
    return exact(stack())


@case
def a_localizer(place):
    write(place, stack())
    image_type = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    write(place, stack(orientation=CORONAL, count=2), setting(ImageType=image_type), mark="localizer")
    return exact(stack(), "LOCALIZER")


@case
def a_localizer_that_does_not_say_so(place):
    write(place, stack())
    write(place, stack(orientation=CORONAL, count=2), mark="localizer")
    return exact(stack(), "OTHER_GROUP")


@case
def a_localizer_in_line_with_the_stack(place):
    write(place, stack())
    image_type = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    write(place, stack([200.0]), setting(ImageType=image_type), mark="localizer")
    return exact(stack(), "LOCALIZER")


@case
def reformatted_images(place):
    write(place, stack())
    image_type = ["DERIVED", "SECONDARY", "MPR"]
    write(place, stack(orientation=SAGITTAL), setting(ImageType=image_type), mark="mpr")
    return exact(stack(), "OTHER_GROUP")


@case
def a_projection(place):
    write(place, stack())
    image_type = ["DERIVED", "SECONDARY", "AXIAL", "MIP"]
    write(place, stack([77.7]), setting(ImageType=image_type), mark="mip")
    return exact(stack(), "PICTURE")


@case
def a_dose_sheet(place):
    def sheet(_index, dataset):
        dataset.SOPClassUID = SECONDARY_CAPTURE
        dataset.ConversionType = "WSD"

    write(place, stack())
    write(place, stack([0.0]), sheet, mark="dose")
    return exact(stack(), "SECONDARY_CAPTURE")


@case
def a_picture_in_colour(place):
    def colour(_index, dataset):
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
        dataset.BitsAllocated = dataset.BitsStored = 8
        dataset.HighBit = 7
        dataset.PixelData = bytes(dataset.Rows * dataset.Columns * 3)

    write(place, stack())
    write(place, stack([61.0]), colour, mark="colour")
    return exact(stack(), "NOT_GREY")


@case
def another_frame_of_reference(place):
    write(place, stack())
    write(place, stack(np.arange(24, 30) * 2.5), setting(FrameOfReferenceUID="1.2.3"), mark="other")
    return exact(stack(), "OTHER_GROUP")


@case
def another_matrix(place):
    write(place, stack())
    write(place, stack(np.arange(24, 30) * 2.5, size=(40, 40)), mark="other")
    return exact(stack(), "OTHER_GROUP")


@case
def a_damaged_file(place):
    paths = write(place, stack())
    (paths[0].parent / "damaged.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 300)
    return repaired("UNREADABLE", worst_hu=0.5)


@case
def a_file_that_is_cut_off(place):
    paths = write(place, stack())
    paths[3].write_bytes(paths[3].read_bytes()[:-100])
    return refused("BAD_PIXELS")


# Values


@case
def an_intercept_for_each_slice(place):
    write(place, stack(), per_slice_rescale=[(1.0, -1024.0 - 10 * k) for k in range(24)])
    return exact(stack())


@case
def a_slope_for_each_slice(place):
    write(place, stack(), per_slice_rescale=[(0.1 + k / 32, -1000.0) for k in range(24)])
    return exact(stack())


@case
def twelve_bits_without_sign_extension(place):
    def cut(_index, dataset):
        dataset.PixelData = (stored(dataset).view(np.uint16) & 0x0FFF).tobytes()

    write(place, stack(origin=(-20.0, -15.0, -30.0)), cut, signed=True, bits_stored=12)
    return exact(stack(origin=(-20.0, -15.0, -30.0)))


@case
def an_overlay_in_the_high_bits(place):
    def overlay(index, dataset):
        dataset.PixelData = (stored(dataset) | np.uint16((index % 15 + 1) << 12)).tobytes()

    write(place, stack(), overlay, bits_stored=12)
    return exact(stack())


@case
def values_in_the_upper_bits(place):
    def shift(_index, dataset):
        dataset.PixelData = (stored(dataset) << 4 | 5).astype(np.uint16).tobytes()
        dataset.HighBit = 15

    write(place, stack(), shift, bits_stored=12)
    return exact(stack())


@case
def metal(place):
    def edit(index, dataset):
        if index == 5:
            dataset.PixelData = b"\xff\xff" + dataset.PixelData[2:]

    write(place, stack(), edit)
    return exact(stack(), special={tuple(stack().positions[5]): 64511.0})


def _corner(value: int, *, declared: int | None, kind: str = "SS", limit: int | None = None) -> Edit:
    def edit(_index, dataset):
        pixels = stored(dataset)
        for rows in (slice(0, 3), slice(-3, None)):
            for columns in (slice(0, 3), slice(-3, None)):
                pixels[rows, columns] = value
        dataset.PixelData = pixels.tobytes()
        if declared is not None:
            dataset.add_new("PixelPaddingValue", kind, declared)
        if limit is not None:
            dataset.add_new("PixelPaddingRangeLimit", kind, limit)

    return edit


@case
def padding_declared(place):
    write(place, stack(), _corner(-2000, declared=-2000), signed=True)
    return exact(stack())


@case
def padding_declared_with_the_wrong_sign(place):
    write(place, stack(), _corner(-2000, declared=63536, kind="US"), signed=True)
    return exact(stack())


@case
def padding_as_a_range(place):
    write(place, stack(), _corner(-2010, declared=-2050, limit=-2000), signed=True)
    return exact(stack())


@case
def padding_that_nobody_declared(place):
    write(place, stack(), _corner(-2000, declared=None), signed=True)
    return exact(stack(), "PADDING_ASSUMED")


@case
def padding_equal_to_air_inside(place):
    """A declared padding value that is also the lowest HU: what lies inside is air and was measured."""

    def edit(_index, dataset):
        pixels = stored(dataset)
        pixels[:3, :3] = 0
        pixels[20, 18] = 0
        dataset.PixelData = pixels.tobytes()
        dataset.add_new("PixelPaddingValue", "US", 0)

    write(place, stack(), edit)
    inside = stack().positions + np.array([18 * 0.7, 20 * 0.8, 0])
    return exact(stack(), special={tuple(point): -1024.0 for point in inside})


@case
def a_table_instead_of_slope_and_intercept(place):
    def edit(_index, dataset):
        item = Dataset()
        item.add_new("LUTDescriptor", "US", [2048, 0, 16])
        item.ModalityLUTType = "HU"
        # Stored values are the HU backwards: a straight rescale is wrong everywhere.
        table = np.arange(2048, dtype=np.int32)[::-1]
        item.add_new("LUTData", "OW", table.astype("<u2").tobytes())
        pixels = 2047 - (stored(dataset).astype(np.int32) - 1024)
        dataset.PixelData = pixels.astype(np.uint16).tobytes()
        dataset.ModalityLUTSequence = [item]
        del dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType

    write(place, stack(), edit)
    return exact(stack())


@case
def monochrome1(place):
    write(place, stack(), setting(PhotometricInterpretation="MONOCHROME1"))
    return exact(stack())


@case
def no_rescale_type(place):
    write(place, stack(), lambda _, d: delattr(d, "RescaleType"))
    return exact(stack())


@case
def not_hounsfield(place):
    write(place, stack(), setting(RescaleType="MGML"))
    return exact(stack(), "NOT_HU")


@case
def no_rescale(place):
    write(place, stack(), lambda _, d: delattr(d, "RescaleIntercept"))
    return refused("NO_RESCALE")


@case
def no_uids(place):
    write(place, stack(), setting(StudyInstanceUID="", SeriesInstanceUID=""))
    return exact(stack())


# Transfer syntaxes


@case
def implicit(place):
    write(place, stack(), transfer_syntax=ImplicitVRLittleEndian)
    return exact(stack())


@case
def deflated(place):
    write(place, stack(), transfer_syntax=DeflatedExplicitVRLittleEndian)
    return exact(stack())


@case
def big_endian(place):
    for path in write(place, stack()):
        dataset = dcmread(path)
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
        turned = Dataset()
        for element in dataset:
            turned.add(element)
        turned.file_meta = dataset.file_meta
        turned.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        turned.save_as(path, implicit_vr=False, little_endian=False, enforce_file_format=True)
    return exact(stack())


@case
def rle(place):
    write(place, stack(), transfer_syntax=RLELossless)
    return exact(stack())


@case
def jpeg_ls(place):
    write(place, stack(), transfer_syntax=JPEGLSLossless)
    return exact(stack())


@case
def jpeg_2000(place):
    write(place, stack(), transfer_syntax=JPEG2000Lossless, signed=True)
    return exact(stack())


def _jpeg_lossless(place: Path, syntax: str) -> Expectation:
    import gdcm

    for path in write(place, stack()):
        reader = gdcm.ImageReader()
        reader.SetFileName(str(path))
        assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(syntax)))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFileName(str(path))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
    return exact(stack())


@case
def jpeg_lossless(place):
    return _jpeg_lossless(place, "1.2.840.10008.1.2.4.57")


@case
def jpeg_lossless_first_order(place):
    return _jpeg_lossless(place, "1.2.840.10008.1.2.4.70")


@case
def jpeg_2000_that_does_not_know_its_sign(place):
    """The header says signed, the codestream unsigned: the bits are those of the header."""
    below = stack(origin=(-20.0, -15.0, -30.0))
    for path in write(place, below, signed=True, bits_stored=12):
        dataset = dcmread(path)
        dataset.PixelRepresentation = 0
        dataset.PixelData = (stored(dataset) & 0x0FFF).astype(np.uint16).tobytes()
        dataset.compress(JPEG2000Lossless, generate_instance_uid=False)
        dataset.PixelRepresentation = 1
        dataset.save_as(path, enforce_file_format=True)
    return exact(below)


@case
def high_throughput_jpeg_2000(place):
    for path in write(place, stack(origin=(-20.0, -15.0, -30.0)), signed=True):
        dataset = dcmread(path)
        htj2k.compress(dataset)
        dataset.save_as(path, enforce_file_format=True)
    return exact(stack(origin=(-20.0, -15.0, -30.0)))


# Multi-frame


def _move(keywords: Sequence[str], source: Dataset) -> Dataset:
    item = Dataset()
    for keyword in keywords:
        if keyword in source:
            item[keyword] = source[keyword]
    return item


_GROUPS = {
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness"),
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept", "RescaleType"),
}


def multiframe(
    images: Sequence[Dataset],
    *,
    uid: str,
    shared: Sequence[str] = ("PlaneOrientationSequence", "PixelMeasuresSequence"),
    sop_class: str = ENHANCED_CT,
    content: Callable[[int, Dataset], None] | None = None,
) -> Dataset:
    """Return one Enhanced CT data set whose frames are ``images``, in that order; ``content`` fills Frame Content."""
    whole = deepcopy(images[0])
    for keywords in _GROUPS.values():
        for keyword in keywords:
            if keyword in whole:
                delattr(whole, keyword)
    whole.SOPClassUID = whole.file_meta.MediaStorageSOPClassUID = sop_class
    whole.SOPInstanceUID = whole.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[SERIES, uid])
    whole.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    whole.NumberOfFrames = len(images)
    common = Dataset()
    for name in shared:
        setattr(common, name, [_move(_GROUPS[name], images[0])])
    whole.SharedFunctionalGroupsSequence = [common]
    groups = []
    for index, image in enumerate(images):
        group = Dataset()
        for name, keywords in _GROUPS.items():
            if name not in shared:
                setattr(group, name, [_move(keywords, image)])
        frame_content = Dataset()
        frame_content.FrameAcquisitionNumber = 1
        frame_content.StackID = "1"
        frame_content.InStackPositionNumber = index + 1
        if content is not None:
            content(index, frame_content)
        group.FrameContentSequence = [frame_content]
        groups.append(group)
    whole.PerFrameFunctionalGroupsSequence = groups
    whole.PixelData = b"".join(image.PixelData for image in images)
    return whole


def _images(place: Path, slices: Stack, *, mark: str = "single", **options) -> list[Dataset]:
    """Return the slices as data sets in memory, shuffled."""
    paths = write(place, slices, mark=mark, **options)
    images = [dcmread(path) for path in paths]
    for image in images:
        image.PixelData  # noqa: B018 - read before the file goes
    shutil.rmtree(place / mark)
    random.Random(4).shuffle(images)
    return images


def _save(place: Path, name: str, dataset: Dataset, syntax: str = ExplicitVRLittleEndian) -> None:
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    if syntax == HTJ2KLossless:
        htj2k.compress(dataset)
    elif syntax != ExplicitVRLittleEndian:
        dataset.compress(syntax, generate_instance_uid=False)
    dataset.save_as(place / name, enforce_file_format=True)


_RESCALE = [(1.0 if k % 2 else 0.5, -1024.0 - k) for k in range(24)]


@case
def enhanced(place):
    _save(place, "enhanced.dcm", multiframe(_images(place, stack(), per_slice_rescale=_RESCALE), uid="e"))
    return exact(stack())


@case
def enhanced_all_shared(place):
    shared = ("PlaneOrientationSequence", "PixelMeasuresSequence", "PixelValueTransformationSequence")
    _save(place, "enhanced.dcm", multiframe(_images(place, stack()), uid="e", shared=shared))
    return exact(stack())


@case
def enhanced_nothing_shared(place):
    _save(place, "enhanced.dcm", multiframe(_images(place, stack()), uid="e", shared=()))
    return exact(stack())


@case
def enhanced_rle(place):
    _save(place, "enhanced.dcm", multiframe(_images(place, stack()), uid="e"), RLELossless)
    return exact(stack())


@case
def enhanced_jpeg_2000(place):
    _save(place, "enhanced.dcm", multiframe(_images(place, stack()), uid="e"), JPEG2000Lossless)
    return exact(stack())


@case
def enhanced_high_throughput_jpeg_2000(place):
    _save(place, "enhanced.dcm", multiframe(_images(place, stack()), uid="e"), HTJ2KLossless)
    return exact(stack())


@case
def enhanced_deflated(place):
    whole = multiframe(_images(place, stack()), uid="e")
    whole.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    whole.save_as(place / "enhanced.dcm", enforce_file_format=True)
    return exact(stack())


@case
def enhanced_tilted(place):
    _save(place, "enhanced.dcm", multiframe(_images(place, _tilted(10)), uid="e"))
    return repaired("TILT")


@case
def enhanced_with_two_stacks(place):
    images = _images(place, stack()) + _images(place, stack(np.arange(10) * 2.5 + 1.1), mark="second")

    def content(index, item):
        item.StackID = "1" if index < 24 else "2"

    _save(place, "enhanced.dcm", multiframe(images, uid="e", content=content))
    return exact(stack(), "OTHER_GROUP")


@case
def enhanced_with_two_times(place):
    images = _images(place, stack())
    images += _images(place, stack(count=20), mark="second", edit=setting(RescaleIntercept="-900"))

    def content(index, item):
        item.TemporalPositionIndex = 1 if index < 24 else 2

    _save(place, "enhanced.dcm", multiframe(images, uid="e", content=content))
    return exact(stack(), "OTHER_ACQUISITION")


def _concatenated(place: Path, parts: Sequence[int]) -> None:
    images = _images(place, stack())
    for part in parts:
        piece = multiframe(images[part * 8 : part * 8 + 8], uid=f"part{part}")
        piece.ConcatenationUID = generate_uid(entropy_srcs=[SERIES, "concatenation"])
        piece.InConcatenationNumber = part + 1
        piece.InConcatenationTotalNumber = 3
        piece.ConcatenationFrameOffsetNumber = part * 8
        _save(place, f"part{part}.dcm", piece)


@case
def concatenation(place):
    _concatenated(place, (2, 0, 1))
    return exact(stack())


@case
def concatenation_without_a_part(place):
    _concatenated(place, (0, 2))
    return repaired("CONCATENATION_INCOMPLETE")


@case
def legacy_converted(place):
    _save(place, "legacy.dcm", multiframe(_images(place, stack()), uid="l", sop_class=LEGACY_CT))
    return exact(stack())


@case
def a_multiframe_that_claims_more_frames(place):
    whole = multiframe(_images(place, stack()), uid="e")
    whole.NumberOfFrames = 30
    _save(place, "enhanced.dcm", whole)
    return refused("BAD_PIXELS")
