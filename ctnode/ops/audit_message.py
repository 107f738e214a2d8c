"""An entry of the audit trail as the XML message of PS3.15 A.5.1 in a frame of syslog (RFC 5424, RFC 5425)."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, Final
from xml.etree.ElementTree import Element, SubElement, tostring

# Facility 10 (security and authorization), severity 5 (notice): RFC 5424 6.2.1, as IHE ITI-20 has it.
PRIORITY: Final = 10 * 8 + 5
MESSAGE_ID: Final = "DICOM+RFC3881"
_SOURCE: Final = ("110153", "Source Role ID")
_DESTINATION: Final = ("110152", "Destination Role ID")
_APPLICATION: Final = ("110150", "Application")
_STUDY: Final = ("110180", "Study Instance UID")
_BY_ADDRESS: Final = "2"


def frame(entry: Mapping[str, Any], *, node: str, host: str, process: int) -> bytes:
    """Return an entry as it goes over the wire: its length, a space, and the message (RFC 5425 4.3).

    Parameters
    ----------
    entry
        A line of the trail.
    node
        AE title of this node, the audit source.
    host, process
        Name of this machine and number of the process that sends.
    """
    head = f"<{PRIORITY}>1 {entry['at']} {_word(host, 255)} ctnode {process} {MESSAGE_ID} - "
    # RFC 5424 6.4: UTF-8 is announced by its mark.
    message = head.encode("ascii") + b"\xef\xbb\xbf" + message_of(entry, node=node)
    return str(len(message)).encode() + b" " + message


def _word(text: str, limit: int) -> str:
    kept = "".join(character for character in text if "!" <= character <= "~")[:limit]
    return kept or "-"


def message_of(entry: Mapping[str, Any], *, node: str) -> bytes:
    """Return the audit message of an entry (PS3.15 A.5.1)."""
    root = Element("AuditMessage")
    event = SubElement(
        root, "EventIdentification",
        EventActionCode=str(entry["action"]), EventDateTime=str(entry["at"]),
        EventOutcomeIndicator=str(entry["outcome"]),
    )  # fmt: skip
    _code(event, "EventID", str(entry["code"]), str(entry["event"]))
    SubElement(event, "EventOutcomeDescription").text = _printable(str(entry["what"]))
    source, target = str(entry.get("source", "")), str(entry.get("target", ""))
    who = _participant(root, str(entry["who"]), is_requestor=True)
    if source:
        who.set("NetworkAccessPointID", _printable(source.rpartition(":")[0] or source))
        who.set("NetworkAccessPointTypeCode", _BY_ADDRESS)
    _code(who, "RoleIDCode", *(_SOURCE if source else _APPLICATION))
    if target:
        _code(_participant(root, target, is_requestor=False), "RoleIDCode", *_DESTINATION)
    if source or target:
        here = _participant(root, node, is_requestor=False)
        _code(here, "RoleIDCode", *(_SOURCE if target else _DESTINATION))
    SubElement(root, "AuditSourceIdentification", AuditSourceID=node)
    _objects(root, entry)
    return bytes(tostring(root, encoding="utf-8", xml_declaration=False))


def _objects(root: Element, entry: Mapping[str, Any]) -> None:
    """Add the studies that an entry is about; its series are details of them."""
    details = {
        "series": " ".join(entry.get("series", ())),
        "instances": str(entry.get("instances", "")),
        "reference": str(entry.get("reference", "")),
    }
    for number, study in enumerate(entry.get("studies", ())):
        # A system object (2) that is a report (3), as A.5.3.7 has it.
        one = SubElement(
            root, "ParticipantObjectIdentification", ParticipantObjectID=_printable(study),
            ParticipantObjectTypeCode="2", ParticipantObjectTypeCodeRole="3",
        )  # fmt: skip
        _code(one, "ParticipantObjectIDTypeCode", *_STUDY)
        for kind, value in details.items() if number == 0 else ():
            if value:
                SubElement(one, "ParticipantObjectDetail", type=kind, value=_base64(value))


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _participant(root: Element, name: str, *, is_requestor: bool) -> Element:
    return SubElement(root, "ActiveParticipant", UserID=_printable(name), UserIsRequestor=str(is_requestor).lower())


def _code(parent: Element, name: str, value: str, meaning: str) -> None:
    SubElement(parent, name, {"csd-code": value, "codeSystemName": "DCM", "originalText": meaning})


def _printable(text: str) -> str:
    """Return a text that XML can hold."""
    return "".join(character if character.isprintable() else "?" for character in text)
