"""De-identification by allow-list: an object for the outside is built anew from what may leave, nothing is taken away.

The Basic Application Level Confidentiality Profile of PS3.15 Annex E with the options Retain Longitudinal Temporal
Information with Modified Dates and Retain Device Identity in part (manufacturer and model). What is not listed in
``leaving``, private attributes and text in structured reports above all, does not leave, at any depth. UIDs, subject
and dates are mapped with HMAC-SHA-256 under the key of the profile: the same source gives the same object, and
originals and results of one project still belong together.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Final

import pydicom
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.multival import MultiValue
from pydicom.uid import PYDICOM_IMPLEMENTATION_UID

from ctnode import __version__
from ctnode.ops.durable import write_durable
from ctnode.results.leaving import (
    CODE_STRING,
    LISTED,
    OWN_DESCRIPTION,
    OWN_LISTED,
    OWN_TEXTS,
    RESCALE_TYPES,
    TECHNICAL,
    TIME,
    is_of_the_standard,
    is_plain_label,
    meaning_of,
)
from ctnode.words import Refusal
from ctnode.words.origin import CODING_SCHEME

REFUSED: Final = "NOT_DEIDENTIFIED"
# Days by which the dates of a subject are moved into the past.
_LONGEST_SHIFT_DAYS: Final = 3650
# Pixels of these are images of a scanner; those of Secondary Capture may show a name, unless ctnode drew them.
_IMAGES: Final = frozenset({"1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2"})
_OWN: Final = frozenset(
    {
        "1.2.840.10008.5.1.4.1.1.7",  # Secondary Capture
        "1.2.840.10008.5.1.4.1.1.66.4",  # Segmentation
        "1.2.840.10008.5.1.4.1.1.66.7",  # Label Map Segmentation
        "1.2.840.10008.5.1.4.1.1.88.22",  # Enhanced SR
        "1.2.840.10008.5.1.4.1.1.88.33",  # Comprehensive SR
        "1.2.840.10008.5.1.4.1.1.88.34",  # Comprehensive 3D SR
    }
)
# Whose values are texts of any kind; others are numbers, or bytes of pixels.
_TEXT_VRS: Final = frozenset(["AE", "AS", "CS", "DA", "DT", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT"])
# Of items that stay only where the standard knows the code.
_CODES: Final = frozenset({"CodeValue", "CodingSchemeDesignator", "CodeMeaning"})
_TEXT_ITEMS: Final = frozenset({"TEXT", "PNAME", "DATE", "TIME", "DATETIME"})
# Type 1 and 2 attributes of the patient, study and equipment that Annex E empties.
_EMPTIED: Final = (
    "PatientBirthDate", "PatientSex", "ReferringPhysicianName", "StudyID", "AccessionNumber",
)  # fmt: skip
_DATE: Final = re.compile(r"[0-9]{8}(?P<rest>([0-9]{2}){0,3}(\.[0-9]{1,6})?)([+-][0-9]{4})?")
_METHODS: Final = (
    ("113100", "Basic Application Confidentiality Profile"),
    ("113107", "Retain Longitudinal Temporal Information Modified Dates Option"),
)


@dataclass(frozen=True, slots=True)
class Profile:
    """A project and its key; who has the key can link subjects again, nobody else."""

    project: str
    key: bytes = field(repr=False)

    def mapped_uid(self, uid: str) -> str:
        """Return the UID that stands for ``uid`` outside, under 2.25 (PS3.5 B.2); those of the standard stay."""
        if not uid or is_of_the_standard(uid):
            return uid
        return f"2.25.{int.from_bytes(self._mac('uid', uid)[:16], 'big')}"

    def subject(self, patient: str) -> str:
        """Return the ID of a subject in the project."""
        return f"{self.project}-{self._mac('subject', patient).hex()[:16]}"

    def label(self, text: str) -> str:
        """Return what stands for a label of a sender, in 16 letters."""
        return self._mac("label", text).hex()[:16]

    def shift(self, patient: str) -> timedelta:
        """Return by how much the dates of a patient move into the past; the same for all of them."""
        return timedelta(days=1 + int.from_bytes(self._mac("dates", patient)[:8], "big") % _LONGEST_SHIFT_DAYS)

    def _mac(self, what: str, value: str) -> bytes:
        message = "\x1f".join((self.project, what, value)).encode("utf-8", "surrogatepass")
        return hmac.digest(self.key, message, hashlib.sha256)


def deidentify(source: Dataset, profile: Profile) -> Dataset:
    """Return a new data set that holds of ``source`` only what may leave.

    Raises
    ------
    Refusal
        If the object is of a class whose content cannot be judged, or its pixels may show who the patient is.
    """
    _require_harmless(source)
    patient = _text(source, "PatientID")
    key = "\x1f".join((patient, _text(source, "IssuerOfPatientID"))) if patient else _text(source, "StudyInstanceUID")
    made = _Builder(profile, profile.shift(key), is_own=_is_own(source)).built(source)
    for keyword in _EMPTIED:
        setattr(made, keyword, None)
    made.PatientID = made.PatientName = profile.subject(key)
    made.PatientIdentityRemoved = "YES"
    made.LongitudinalTemporalInformationModified = "MODIFIED"
    made.DeidentificationMethod = f"ctnode {__version__}, allow-list"
    made.DeidentificationMethodCodeSequence = [_code(*method) for method in _METHODS]
    return made


def deidentify_file(source: Path, target: Path, profile: Profile) -> None:
    """Write the de-identified form of a Part 10 file, in the same transfer syntax.

    Raises
    ------
    Refusal
        As ``deidentify``, or if the file cannot be read.
    """
    try:
        dataset = pydicom.dcmread(source)
        made = deidentify(dataset, profile)
        syntax = dataset.file_meta.TransferSyntaxUID
        made.file_meta = FileMetaDataset()
        made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
        made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
        made.file_meta.TransferSyntaxUID = syntax
        made.file_meta.ImplementationClassUID = PYDICOM_IMPLEMENTATION_UID
        buffer = io.BytesIO()
        pydicom.dcmwrite(buffer, made, enforce_file_format=True)
    except (Refusal, OSError):
        raise
    except Exception as error:  # noqa: BLE001 - pydicom raises whatever it likes on hostile bytes, RecursionError too
        raise Refusal(f"the object cannot be de-identified: {type(error).__name__}", code=REFUSED) from None
    write_durable(target, buffer.getvalue())


def _require_harmless(source: Dataset) -> None:
    sop_class = _text(source, "SOPClassUID")
    if sop_class not in _IMAGES and not _is_own(source):
        raise Refusal("no profile for objects of this SOP class that ctnode did not make", code=REFUSED)
    if _text(source, "BurnedInAnnotation").upper() == "YES":
        raise Refusal("the pixels hold burned-in annotation", code=REFUSED)
    if sop_class in _IMAGES and {"SECONDARY", "SCREEN SAVE"} & set(_texts(source, "ImageType")):
        raise Refusal("a secondary image may show annotation in its pixels", code=REFUSED)


def _is_own(source: Dataset) -> bool:
    return _text(source, "Manufacturer").lower() == "ctnode" and _text(source, "SOPClassUID") in _OWN


class _Builder:
    """Builds data sets of what may leave of others, at every depth by the same rules."""

    def __init__(self, profile: Profile, shift: timedelta, *, is_own: bool) -> None:
        self._profile = profile
        self._shift = shift
        self._is_own = is_own
        self._allowed = OWN_LISTED if is_own else LISTED

    def built(self, source: Dataset) -> Dataset:
        made = Dataset()
        for tag in source.keys():  # noqa: SIM118 - a Dataset iterates over elements, and those decode
            keyword = pydicom.datadict.keyword_for_tag(tag)
            if tag.is_private or keyword not in self._allowed:
                continue
            element = source[tag]
            # The dictionary lets some attributes be one of several, such as US or SS.
            if element.VR not in pydicom.datadict.dictionary_VR(tag).split(" or "):
                continue
            if element.VR == "SQ":
                items = [self.built(item) for item in element.value or [] if self._may_stay(keyword, item)]
                made.add(DataElement(tag, "SQ", items))
            else:
                self._add(made, keyword, element)
        self._judge_code(made)
        return made

    def _judge_code(self, made: Dataset) -> None:
        """Leave of a code nothing, or what the standard says of it and not what somebody typed there."""
        if self._is_own and _text(made, "CodingSchemeDesignator") == CODING_SCHEME:
            return
        meaning = _meaning(made)
        for keyword in _CODES if meaning is None else ():
            if keyword in made:
                delattr(made, keyword)
        if "CodeMeaning" in made:
            made.CodeMeaning = meaning

    def _may_stay(self, keyword: str, item: Dataset) -> bool:
        if keyword == "ContentSequence" and _text(item, "ValueType") in _TEXT_ITEMS:
            return False
        is_ours = self._is_own and _text(item, "CodingSchemeDesignator") == CODING_SCHEME
        return is_ours or _meaning(item) is not None or not any(word in item for word in _CODES)

    def _add(self, made: Dataset, keyword: str, element: DataElement) -> None:
        many = element.value if isinstance(element.value, MultiValue) else [element.value]
        if element.VR in _TEXT_VRS:
            texts = [self._left_of(keyword, element.VR, str(one)) for one in many if one is not None]
            made.add(DataElement(element.tag, element.VR, texts if len(texts) != 1 else texts[0]))
        else:
            made.add(DataElement(element.tag, element.VR, element.value))

    def _left_of(self, keyword: str, vr: str, text: str) -> str:
        """Return what leaves of one text: mapped, itself where it is harmless, else nothing."""
        if vr == "UI":
            return self._profile.mapped_uid(text)
        if vr in {"DA", "DT"}:
            return _moved(text, self._shift)
        if vr == "TM":
            return text if TIME.fullmatch(text.strip()) else ""
        if vr == "CS":
            return text if CODE_STRING.fullmatch(text) else ""
        if keyword in TECHNICAL or keyword in _CODES:
            return text
        if keyword in {"SegmentLabel", "SegmentAlgorithmName"}:
            return text if text in OWN_TEXTS else ""
        if keyword == "StackID":
            return text if is_plain_label(text) else self._profile.label(text)
        if keyword == "SeriesDescription":
            return text if OWN_DESCRIPTION.fullmatch(text) else ""
        if keyword == "RescaleType":
            return text if text.strip() in RESCALE_TYPES else "US"
        return ""


def _meaning(item: Dataset) -> str | None:
    return meaning_of(_text(item, "CodingSchemeDesignator"), _text(item, "CodeValue"))


def _moved(text: str, shift: timedelta) -> str:
    """Return a date moved into the past, with the time of day behind it but no zone; what is none becomes empty."""
    found = _DATE.fullmatch(text.strip())
    try:
        moved = date(int(text[:4]), int(text[4:6]), int(text[6:8])) - shift if found else None
    except (ValueError, OverflowError):
        moved = None
    return f"{moved:%Y%m%d}{found['rest']}" if moved is not None and found is not None else ""


def _code(value: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "DCM", meaning
    return code


def _text(dataset: Dataset, keyword: str) -> str:
    return str(dataset.get(keyword) or "").strip()


def _texts(dataset: Dataset, keyword: str) -> Sequence[str]:
    value = dataset.get(keyword) or []
    return [str(one).upper() for one in ([value] if isinstance(value, str) else value)]
