"""Which images form the volume; whatever does not is named in an issue."""

from __future__ import annotations

import numpy as np
import pytest

from ctnode.ct import repeats, select
from ctnode.ct.source import DISCRIMINATORS
from ctnode.words import Refusal, Severity
from tests.phantom_series import frame

pytestmark = pytest.mark.unit

CORONAL = (1, 0, 0, 0, 0, -1)


@pytest.fixture(autouse=True)
def pixels(monkeypatch):
    """Let the SOP Instance UID say what the pixels are: the part before the first dash."""
    monkeypatch.setattr(repeats, "stored_values", lambda one: np.array([hash(one.sop_uid.partition("-")[0])]))


def stack(count=6, prefix="s", **changes):
    return [frame(sop_uid=f"{prefix}{k}", position_mm=(0.0, 0.0, 2.0 * k), **changes) for k in range(count)]


def choose(frames):
    issues = []
    chosen = select.choose(frames, issues)
    return {one.sop_uid for one in chosen}, {issue.code: issue for issue in issues}


def names(frames):
    return {one.sop_uid for one in frames}


@pytest.mark.parametrize(
    ("odd", "code"),
    [
        ({"image_type": ("ORIGINAL", "PRIMARY", "LOCALIZER")}, "LOCALIZER"),
        ({"sop_class": select.SECONDARY_CAPTURE}, "SECONDARY_CAPTURE"),
        ({"sop_class": "1.2.840.10008.5.1.4.1.1.88.22"}, "NOT_CT"),
        ({"samples": 3, "photometric": "RGB"}, "NOT_GREY"),
        ({"image_type": ("DERIVED", "SECONDARY", "MIP")}, "PICTURE"),
        ({"pixel_length": -1}, "NO_PIXELS"),
        ({"image_type": ("DERIVED", "SECONDARY", "MPR"), "orientation": CORONAL}, "OTHER_GROUP"),
        ({"orientation": CORONAL}, "OTHER_GROUP"),
        ({"rows": 5}, "OTHER_GROUP"),
        ({"pixel_spacing_mm": (1.0, 1.1)}, "OTHER_GROUP"),
        ({"frame_of_reference": "1.3"}, "OTHER_GROUP"),
        ({"rescale_type": "MGML"}, "OTHER_GROUP"),
        ({"image_type": ("ORIGINAL", "PRIMARY", "AXIAL", "ELECTRON_DENSITY")}, "OTHER_GROUP"),
    ],
)
def test_what_does_not_belong_is_left_out_and_named(odd, code):
    main = stack()
    chosen, issues = choose([*main, frame(**{"sop_uid": "odd", "position_mm": (0.0, 0.0, 99.0), **odd})])
    assert chosen == names(main)
    assert issues.keys() == {code}
    assert "odd" in issues[code].action
    assert issues[code].severity is Severity.INFO


@pytest.mark.parametrize("lost", [{"position_mm": None}, {"orientation": None}, {"pixel_spacing_mm": (0.0, 1.0)}])
def test_an_image_without_a_place_might_belong_so_it_is_a_warning(lost):
    chosen, issues = choose([*stack(), frame(**{"sop_uid": "lost", **lost})])
    assert "lost" not in chosen
    assert issues["NO_GEOMETRY"].severity is Severity.WARNING


def test_original_images_come_before_more_derived_ones_and_those_before_a_handful():
    derived = stack(30, "d", image_type=("DERIVED", "SECONDARY", "AXIAL"))
    assert choose([*stack(8), *derived])[0] == names(stack(8))
    assert choose([*stack(2), *derived])[0] == names(derived)


def test_orientations_that_differ_in_the_last_digit_are_one_group():
    tipped = [
        frame(sop_uid=f"t{k}", position_mm=(0, 0, 2.0 * k), orientation=(1, 5e-5 * (k % 2), 0, 0, 1, 0))
        for k in range(6)
    ]
    assert choose(tipped)[0] == names(tipped)


def test_the_same_file_twice_is_used_once():
    chosen, issues = choose(stack() + stack())
    assert chosen == names(stack())
    assert issues.keys() == {"DUPLICATE_FILE"}


def test_the_same_pixels_at_one_position_are_used_once():
    again = frame(sop_uid="s3-again", position_mm=(0.0, 0.0, 6.0))
    chosen, issues = choose([*stack(), again])
    assert chosen == names(stack())
    assert "s3-again" in issues["DUPLICATE_SLICE"].action


def test_other_pixels_at_one_position_are_refused():
    with pytest.raises(Refusal) as caught:
        choose([*stack(), frame(sop_uid="other", position_mm=(0.0, 0.0, 6.0))])
    assert caught.value.code == "AMBIGUOUS"


def test_equal_pixels_with_another_rescale_are_not_equal():
    again = frame(sop_uid="s3-again", position_mm=(0.0, 0.0, 6.0), intercept=1.0)
    with pytest.raises(Refusal) as caught:
        choose([*stack(), again])
    assert caught.value.code == "AMBIGUOUS"


def test_padding_written_with_another_sign_is_the_same_padding():
    main = stack(padding=63536, signed=True)
    again = frame(sop_uid="s3-again", position_mm=(0.0, 0.0, 6.0), padding=-2000, signed=True)
    chosen, issues = choose([*main, again])
    assert (chosen, issues.keys()) == (names(main), {"DUPLICATE_SLICE"})


def acquisition(number):
    return (str(number), *("",) * (len(DISCRIMINATORS) - 1))


def test_two_acquisitions_of_the_same_positions_are_told_apart():
    first, second = stack(6, "a", discriminators=acquisition(1)), stack(7, "b", discriminators=acquisition(2))
    chosen, issues = choose([*first, *second])
    assert chosen == names(second)
    assert "a0" in issues["OTHER_ACQUISITION"].action


def test_passes_that_lie_between_each_other_are_told_apart():
    first = stack(8, "a", discriminators=acquisition(1))
    second = [frame(sop_uid=f"b{k}", position_mm=(0, 0, 2.0 * k + 1), discriminators=acquisition(2)) for k in range(7)]
    chosen, issues = choose([*first, *second])
    assert chosen == names(first)
    assert "AcquisitionNumber 2" in issues["OTHER_ACQUISITION"].action


def test_times_alone_do_not_part_an_even_stack():
    """Two writers at work: every second image has another time, and all of them are one stack."""
    times = [(*("",) * (len(DISCRIMINATORS) - 1), f"12000{k % 2}") for k in range(12)]
    one = [frame(sop_uid=f"s{k}", position_mm=(0, 0, 2.0 * k), discriminators=times[k]) for k in range(12)]
    assert choose(one) == (names(one), {})


@pytest.mark.parametrize("beyond", [13, 8])
def test_passes_that_follow_each_other_are_one_volume(beyond):
    first = stack(12, "a", discriminators=acquisition(1))
    second = [
        frame(sop_uid=f"b{k}", position_mm=(0, 0, 2.0 * (beyond + k) + 0.7), discriminators=acquisition(2))
        for k in range(12)
    ]
    chosen, issues = choose([*first, *second])
    assert chosen == names(first) | names(second)
    assert "OTHER_ACQUISITION" not in issues


def test_one_phase_after_the_other_is_decoded_once(monkeypatch):
    decoded = []
    monkeypatch.setattr(repeats, "stored_values", lambda one: np.array([decoded.append(one) or hash(one.sop_uid[0])]))
    phases = [stack(6, name, discriminators=acquisition(number)) for number, name in enumerate("abcdefgh")]
    choose([one for phase in phases for one in phase])
    assert len(decoded) == 2


def test_acquisition_numbers_that_only_count_along_are_one_volume():
    steps = [frame(sop_uid=f"s{k}", position_mm=(0, 0, 2.0 * k), discriminators=acquisition(k // 2)) for k in range(6)]
    assert choose(steps) == (names(steps), {})


def test_pieces_of_a_stack_are_not_taken_for_volumes():
    steps = [frame(sop_uid=f"s{k}", position_mm=(0, 0, 2.0 * k), discriminators=acquisition(k)) for k in range(6)]
    with pytest.raises(Refusal) as caught:
        choose([*steps, frame(sop_uid="other", position_mm=(0, 0, 6.0), discriminators=acquisition(9))])
    assert caught.value.code == "AMBIGUOUS"


def test_one_uid_at_two_places_is_refused():
    with pytest.raises(Refusal) as caught:
        choose([*stack(), frame(sop_uid="s3", position_mm=(0.0, 0.0, 77.0))])
    assert caught.value.code == "AMBIGUOUS"


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        (stack(sop_class="1.2.840.10008.5.1.4.1.1.4"), "NO_CT_IMAGES"),
        ([frame(position_mm=None)], "NO_GEOMETRY"),
        ([frame(position_mm=(0.0, -1e40, 160.0))], "NO_GEOMETRY"),
        ([frame(frames=30)], "NO_GEOMETRY"),
    ],
)
def test_series_without_a_volume(frames, code):
    with pytest.raises(Refusal) as caught:
        choose(frames)
    assert caught.value.code == code


@pytest.mark.parametrize("keyword", DISCRIMINATORS)
def test_each_attribute_that_can_tell_images_apart_does(keyword):
    def told(value):
        return tuple(value if name == keyword else "" for name in DISCRIMINATORS)

    chosen, issues = choose([*stack(6, "a", discriminators=told("1")), *stack(7, "b", discriminators=told("2"))])
    assert {name[0] for name in chosen} == {"b"}
    assert f"{keyword} 1" in issues["OTHER_ACQUISITION"].action


def test_the_first_attribute_that_discriminates_is_used():
    # Acquisition numbers tell all apart, times do too, but into pieces.
    def told(number, time):
        return (number, *("",) * (len(DISCRIMINATORS) - 3), time, "")

    first = [frame(sop_uid=f"a{k}", position_mm=(0, 0, 2.0 * k), discriminators=told("1", str(k))) for k in range(6)]
    second = [frame(sop_uid=f"b{k}", position_mm=(0, 0, 2.0 * k), discriminators=told("2", str(k))) for k in range(6)]
    _, issues = choose([*first, *second])
    assert "AcquisitionNumber 2" in issues["OTHER_ACQUISITION"].action


def test_an_attribute_that_leaves_two_images_at_one_position_tells_nothing():
    def told(kvp, kernel):
        values = {"KVP": kvp, "ConvolutionKernel": kernel}
        return tuple(values.get(name, "") for name in DISCRIMINATORS)

    # KVP 80 holds two partial passes at the same positions: it tells only one part apart.
    soft = [frame(sop_uid=f"a{k}", position_mm=(0, 0, 2.0 * k), discriminators=told("120", "soft")) for k in range(7)]
    passes = [
        frame(sop_uid=f"{name}{k}", position_mm=(0, 0, 2.0 * k), discriminators=told("80", name))
        for name in ("sharp", "bone")
        for k in range(3)
    ]
    chosen, issues = choose([*soft, *passes])
    assert chosen == names(soft)
    assert issues["OTHER_ACQUISITION"].action.count("ConvolutionKernel") == 1


def everything(frames):
    return select.candidates(frames, [])


def test_every_volume_is_listed_the_largest_valid_one_first():
    bent = [frame(sop_uid=f"c{k}", position_mm=(k * k / 2, 0, 2.0 * k), rows=9) for k in range(20)]
    handful = stack(3, "h", columns=9)
    found = everything([*bent, *stack(6), *handful])
    assert [(len(one.frames), one.refusal.code if one.refusal else None) for one in found] == [
        (6, None), (20, "CURVED"), (3, None)
    ]  # fmt: skip
    ((_, main), (number, small)) = select.beside(found, 1)
    assert main.as_json() == {
        "images": 6, "shape_zyx": [6, 4, 4], "spacing_zyx_mm": [2.0, 1.0, 1.0], "code": "OTHER_GROUP",
        "reason": "another matrix", "refused": None,
    }  # fmt: skip
    assert (number, small.reason) == (3, ("OTHER_GROUP", "another matrix"))
    assert "CURVED" in select.beside(found, 0)[0][1].words


def test_a_volume_that_is_not_the_main_one_says_what_tells_the_main_one_apart():
    found = everything([*stack(7, "a", discriminators=acquisition(1)), *stack(6, "b", discriminators=acquisition(2))])
    (issue,) = select.remarks(found, 1, converted=True)
    assert issue.code == "OTHER_ACQUISITION"
    assert "volume 1 of this series" in issue.action
    assert "AcquisitionNumber 1" in issue.action


def test_a_series_of_one_invalid_group_and_a_handful_is_refused():
    bent = [frame(sop_uid=f"c{k}", position_mm=(k * k / 2, 0, 2.0 * k)) for k in range(20)]
    with pytest.raises(Refusal) as caught:
        choose([*bent, *stack(2, "h", columns=9)])
    assert caught.value.code == "CURVED"


def test_an_ambiguous_group_beside_a_volume_is_a_warning():
    other = frame(sop_uid="other", position_mm=(0.0, 0.0, 6.0), rows=9)
    _, issues = choose([*stack(), *stack(5, "x", rows=9), other])
    assert issues["OTHER_GROUP"].severity is Severity.WARNING


def test_frames_of_one_file_are_images_of_their_own():
    enhanced = {"sop_class": "1.2.840.10008.5.1.4.1.1.2.1", "frames": 6, "sop_uid": "e", "digest": "d"}
    frames = [frame(index=k, position_mm=(0.0, 0.0, 2.0 * k), **enhanced) for k in range(6)]
    issues = []
    assert len(select.choose(frames, issues)) == 6
    assert issues == []
    assert frames[2].name == "e frame 3"


def test_stacks_are_kept_apart():
    frames = [*stack(6, "a", stack="1"), *stack(5, "b", stack="2")]
    chosen, issues = choose(frames)
    assert {name[0] for name in chosen} == {"a"}
    assert "stack" in issues["OTHER_GROUP"].action


def test_a_concatenation_without_a_part_is_a_warning():
    parts = [frame(sop_uid=f"s{k}", position_mm=(0, 0, 2.0 * k), concatenation=("c", k, 0)) for k in (1, 2, 4, 5)]
    issues = choose(parts)[1]
    assert issues["CONCATENATION_INCOMPLETE"].severity is Severity.WARNING
    assert "first is 3" in issues["CONCATENATION_INCOMPLETE"].action


def test_the_order_of_the_files_changes_nothing():
    frames = [
        *stack(6, "a", discriminators=acquisition(1)),
        *stack(6, "b", discriminators=acquisition(2)),
        frame(rows=9),
    ]
    assert choose(frames) == choose(frames[::-1])
