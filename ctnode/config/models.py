"""Every key of the configuration, with its type, its default and its meaning in one line."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, Field, FiniteFloat, field_validator

from ctnode.config.fields import AeTitle, Name, Port, ResultKind, Seconds, Section, Side
from ctnode.config.peer import Peer
from ctnode.config.privacy import Deidentification
from ctnode.config.retention import Retention
from ctnode.config.routes import Route, Routing
from ctnode.config.rules import CompletionRule
from ctnode.config.telling import Audit, Notify
from ctnode.config.web import Web

# Under it, a chest would fill the memory of any machine.
LEAST_SPACING_MM: Final = 0.2
LARGEST_SPACING_MM: Final = 20.0


class Node(Section):
    """The node on the network."""

    ae_title: AeTitle = Field("CTNODE", description="AE title of the node, used when it calls others")
    host: str = Field("127.0.0.1", description="address to listen on; anything but loopback needs [[peers]]")
    port: int = Field(11112, ge=0, le=65535, description="port to listen on; 0 takes any free one, see `ctnode status`")
    called_ae_titles: tuple[AeTitle, ...] = Field(
        (), strict=False, description="called AE titles that are served; empty: any"
    )
    accept_unknown: bool = Field(default=False, description="serve callers that are not in [[peers]]")
    drain_s: float = Field(30.0, ge=0, le=3600, description="seconds that open associations may finish after SIGTERM")


class Storage(Section):
    """Where everything lies."""

    root: str = Field(
        "ctnode-data", description="folder of the node: incoming/ store/ results/ quarantine/ run/ ctnode.db"
    )
    results: str = Field("", description="folder of the results; empty: results/ below the root")
    reserve_mb: int = Field(
        1024, ge=0, description="free megabytes under which new associations are refused as transient"
    )
    reserve_inodes: int = Field(
        10000, ge=0, description="free inodes under which new associations are refused as transient"
    )


class Receiver(Section):
    """The DICOM port."""

    processes: int = Field(2, ge=1, le=64, description="receiver processes behind the one listening socket")
    max_associations: int = Field(400, ge=1, le=900, description="associations at the same time, over all processes")
    max_per_address: int = Field(
        250, ge=1, le=900, description="of these, associations from one address; the next is rejected as transient"
    )
    max_pdu: int = Field(131072, ge=4096, le=1048576, description="largest PDU in bytes that is offered to peers")
    max_object_mb: int = Field(8192, ge=1, description="largest single object in megabytes that is taken")
    request_timeout_s: Seconds = Field(30.0, description="seconds a new connection has for its A-ASSOCIATE-RQ")
    idle_timeout_s: Seconds = Field(60.0, description="seconds an association may be silent before it is aborted")
    pdu_timeout_s: Seconds = Field(60.0, description="seconds one PDU may take from its first byte to its last")


class Tls(Section):
    """A second port, with TLS 1.2 or 1.3 as PS3.15 B.12 asks; SIGHUP reads its files anew."""

    certificate: str = Field("", description="PEM file of the node's certificate with its chain; empty: no TLS port")
    key: str = Field("", description="PEM file of its private key; empty: in the certificate file")
    ca: str = Field("", description="PEM file of the authorities that sign the certificates of peers")
    require_client_certificate: bool = Field(
        default=True, description="serve only peers with a certificate of tls.ca; needs tls.ca"
    )
    host: str = Field("", description="address to listen on with TLS; empty: that of node.host")
    port: int = Field(2762, ge=0, le=65535, description="port to listen on with TLS; 0 takes any free one")


class Completion(Section):
    """When a series counts as complete."""

    quiet_s: Seconds = Field(10.0, description="seconds without a new instance after which a series is complete")
    called_ae_quiet_s: Mapping[AeTitle, Seconds] = Field(
        {},
        description="quiet seconds by called AE title, for example { FAST = 3 }; a peer's own quiet_s comes first",
    )
    max_wait_s: Seconds = Field(900.0, description="seconds since the last new instance after which waiting ends")
    association_hold_s: Seconds = Field(
        2592000.0, description="seconds without a new instance after which an open association no longer holds a series"
    )
    suspect: Literal["process", "hold"] = Field(
        "process", description="what happens to a SUSPECT series: process and mark it, or hold it for the operator"
    )


class Worker(Section):
    """Who computes, and within which limits."""

    processes: int = Field(1, ge=1, le=64, description="jobs at the same time")
    memory_mb: int = Field(
        4096, ge=256, description="resident megabytes at which a job is stopped, its helper processes counted"
    )
    timeout_s: Seconds = Field(1800.0, description="seconds after which the child of a job is stopped")


class Pipeline(Section):
    """What is computed."""

    spacing_mm: float | Literal["keep"] | tuple[float, float, float] = Field(
        1.0,
        description=(
            f"millimetres of the voxels of ct_iso and lungs_iso, {LEAST_SPACING_MM} to {LARGEST_SPACING_MM:g};"
            ' three numbers: along columns, rows, slices; "keep": the grid of the scan'
        ),
    )
    size: tuple[Side, ...] = Field(
        (),
        strict=False,
        description="columns, rows and slices of ct_iso over the whole field of view; empty: by spacing_mm",
    )
    interpolation: Literal["linear", "cubic", "area"] = Field(
        "linear", description="linear, cubic (sharper, never beyond its neighbours) or area (mean over larger voxels)"
    )
    volumes: Literal["main", "all"] = Field(
        "main", description="which volumes of a series are converted; all: ct_2.nii.gz and so on beside the main one"
    )
    labels: Literal["nearest", "one-hot"] = Field(
        "nearest", description="how masks are resampled; one-hot gives smoother surfaces"
    )

    @field_validator("size")
    @classmethod
    def _three_or_none(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(value) not in {0, 3}:
            raise ValueError("Input should be three numbers: columns, rows, slices")
        return value

    @field_validator("spacing_mm", mode="before")
    @classmethod
    def _a_spacing(cls, value: object) -> float | str | tuple[float, ...]:
        if value == "keep":
            return "keep"
        many = isinstance(value, (list, tuple))
        steps = tuple(value) if isinstance(value, (list, tuple)) else (value,)
        numbers = tuple(float(one) for one in steps if isinstance(one, (int, float)) and not isinstance(one, bool))
        is_whole = len(numbers) == len(steps) == (3 if many else 1)
        if not is_whole or not all(LEAST_SPACING_MM <= one <= LARGEST_SPACING_MM for one in numbers):
            raise ValueError(
                f'Input should be a number from {LEAST_SPACING_MM} to {LARGEST_SPACING_MM:g}, three of them, or "keep"'
            )
        return numbers if many else numbers[0]


class LungMask(Section):
    """How lungs are segmented."""

    threshold: Literal["auto"] | Annotated[float, Field(ge=-900, le=-100)] = Field(
        "auto",
        description="HU between air and tissue: auto (by scan, -600 to -300) or a number; -320 is the classic",
    )
    fill_structures: bool = Field(
        default=True,
        description="count vessels and nodules inside the lungs to them; false: only what is under the threshold",
    )
    structures: bool = Field(
        default=False,
        description="lungs_structures.nii.gz: what lies inside the right (1) and the left lung (2) over the threshold",
    )
    closing_mm: float = Field(
        12.0, ge=0, le=30, description="radius of the closing that takes in vessels and nodules at the wall; 0: none"
    )
    dilation_mm: float = Field(
        0.0,
        ge=0,
        le=30,
        description="millimetres by which the lungs are grown at the end; numbers are of the grown mask",
    )
    least_share_pct: float = Field(
        1.0, ge=0, le=100, description="share of the whole volume under which a mask is SUSPECT, in percent"
    )
    most_share_pct: float = Field(
        60.0, ge=0, le=100, description="share of the whole volume over which a mask is SUSPECT, in percent"
    )


class Outputs(Section):
    """Which results are written, beside ct.json and ct.nii.gz."""

    iso: bool = Field(default=True, description="ct_iso.nii.gz and lungs_iso.nii.gz")
    lungs: bool = Field(default=True, description="lung masks with lungs.png, and measurements.json")
    preview: bool = Field(default=True, description="preview.png")
    mpr: bool = Field(default=True, description="mpr.png: three orthogonal planes")
    histogram: bool = Field(default=True, description="histogram.png: HU of volume and lungs, where there are lungs")
    surface: bool = Field(default=True, description="surface.png: lungs, airway and bone in 3-D, where there are lungs")
    seg: Literal["none", "binary", "labelmap"] = Field(
        "binary", description="seg.dcm, DICOM Segmentation; labelmap is smaller, and fewer viewers know it"
    )
    sr: bool = Field(default=True, description="sr.dcm, DICOM SR TID 1500 with the numbers; needs seg")
    report: bool = Field(default=True, description="report.dcm: a Secondary Capture page with pictures and numbers")
    document: bool = Field(default=False, description="document.dcm: the page of report.dcm as Encapsulated PDF")
    derived: bool = Field(
        default=False, description="derived.zip: the volume of ct_iso as a series of CT images in the source's study"
    )
    window: Literal["auto", "header", "lung", "mediastinum", "bone", "brain", "soft tissue"] = Field(
        "auto", description="window of preview.png and mpr.png; header: the first one of the source"
    )
    png16: bool = Field(
        default=False,
        description="every slice of ct.nii.gz without loss as 16-bit PNG in slices.zip (offset in ct.json)",
    )
    array: Literal["none", "float16", "float32"] = Field(
        "none", description="ct_norm.npy, ready for a network, on the grid of ct_iso, with its affine in ct_norm.json"
    )
    array_clip_hu: tuple[FiniteFloat, FiniteFloat] = Field(
        (-1000.0, 400.0), strict=False, description="HU that become 0 and 1 in ct_norm.npy; values beyond are cut"
    )
    array_mean: FiniteFloat = Field(0.25, description="subtracted from the values of ct_norm.npy at the end")
    descriptions: bool = Field(
        default=False, description="descriptions of study, series and protocol in ct.json; they may name the patient"
    )

    @field_validator("array_clip_hu")
    @classmethod
    def _in_order(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] >= value[1]:
            raise ValueError("the first should be less than the second")
        return value


class Delivery(Section):
    """How results are sent, and sent again."""

    first_retry_s: Seconds = Field(
        10.0, description="seconds until the second try; each further one waits twice as long"
    )
    max_retry_s: Seconds = Field(3600.0, description="longest wait in seconds between two tries")
    give_up_days: float = Field(
        30.0, ge=0, le=3650, description="days of failing after which what waits is given up (DEAD); 0: never"
    )
    timeout_s: Seconds = Field(60.0, description="seconds a destination may take for one answer")
    proof_wait_s: Seconds = Field(
        60.0, description="seconds until the arrival of what was sent is asked for, and again"
    )
    late_s: Seconds = Field(3600.0, description="seconds until what waits counts as late in `ctnode doctor`")


class Commitment(Section):
    """Storage commitment: vouching for what peers have sent."""

    patience_s: float = Field(
        60.0, ge=0, le=86400, description="seconds an instance that a peer asks for may still be on its way"
    )


class Inbox(Section):
    """The watched folder."""

    path: str = Field("", description="folder whose files and zips are imported and then removed; empty: none")
    settle_s: float = Field(
        2.0, ge=0, le=3600, description="seconds a file must keep its size and time before it is read"
    )


class Log(Section):
    """What the node says."""

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level that is written")
    format: Literal["auto", "text", "json"] = Field(
        "auto", description="text, json, or auto: text on a terminal, else json"
    )


class Target(Section):
    """One destination of results."""

    name: Name = Field(description="name of the destination in logs and commands")
    kind: Literal["dicom", "dicomweb", "folder", "sender"] = Field(
        "dicom", description="dicom (C-STORE), dicomweb (STOW-RS), folder, or sender: the peer that sent the series"
    )
    ae_title: AeTitle | None = Field(None, description="called AE title of the destination; needed with dicom")
    host: str = Field("", description="host of the destination; needed with dicom")
    port: Port | None = Field(None, description="port of the destination; needed with dicom")
    url: str = Field("", description="root of the DICOMweb service, without /studies; needed with dicomweb")
    token_file: str = Field("", description="file with the value of its Authorization header; empty: none is sent")
    path: str = Field("", description="folder that files are put into, which has to exist; needed with folder")
    send: tuple[ResultKind, ...] = Field(("report",), strict=False, description="results that are sent by themselves")
    associations: int = Field(1, ge=1, le=16, description="associations at the same time; a series goes over one")
    transcode: bool = Field(default=False, description="decode what the destination refuses in its transfer syntax")
    proof: Literal["none", "commitment", "query"] = Field(
        "none", description="what makes SENT CONFIRMED: storage commitment, or a query (C-FIND, QIDO-RS)"
    )
    tls: bool = Field(default=False, description="call it with TLS")
    ca: str = Field("", description="PEM file of the authority that signed its certificate; needed with TLS")
    certificate: str = Field("", description="PEM file of the certificate to show it, with its chain; empty: none")
    key: str = Field("", description="PEM file of that certificate's key; empty: in the certificate file")
    tls_name: str = Field("", description="name or address in its certificate; empty: that of host")
    external: bool = Field(default=False, description="outside of the hospital: gets nothing but what is de-identified")
    deidentify: str = Field("", description="profile of [[deidentification]]; needed with external")


class Config(Section):
    """The whole configuration, frozen."""

    node: Node = Field(default_factory=Node)
    storage: Storage = Field(default_factory=Storage)
    receiver: Receiver = Field(default_factory=Receiver)
    tls: Tls = Field(default_factory=Tls)
    completion: Completion = Field(default_factory=Completion)
    worker: Worker = Field(default_factory=Worker)
    pipeline: Pipeline = Field(default_factory=Pipeline)
    lungs: LungMask = Field(default_factory=LungMask)
    outputs: Outputs = Field(default_factory=Outputs)
    delivery: Delivery = Field(default_factory=Delivery)
    commitment: Commitment = Field(default_factory=Commitment)
    inbox: Inbox = Field(default_factory=Inbox)
    retention: Retention = Field(default_factory=Retention)
    web: Web = Field(default_factory=Web)
    log: Log = Field(default_factory=Log)
    audit: Audit = Field(default_factory=Audit)
    peers: tuple[Peer, ...] = Field((), strict=False)
    targets: tuple[Target, ...] = Field((), strict=False)
    deidentification: tuple[Deidentification, ...] = Field((), strict=False)
    routing: Routing = Field(default_factory=Routing)
    routes: tuple[Route, ...] = Field((), strict=False)
    completion_rules: tuple[CompletionRule, ...] = Field((), strict=False)
    notify: tuple[Notify, ...] = Field((), strict=False)

    @property
    def root(self) -> Path:
        """Return the folder of the node."""
        return Path(self.storage.root)

    @property
    def results(self) -> Path:
        """Return the folder of the results."""
        return Path(self.storage.results) if self.storage.results else self.root / "results"

    def digest(self) -> str:
        """Return 12 hex digits that change with any value."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]


# Keys that a running node takes over on SIGHUP; everything else needs a restart.
RELOADABLE: Final = frozenset(
    {
        "node.called_ae_titles", "node.accept_unknown", "node.drain_s", "storage.reserve_mb", "storage.reserve_inodes",
        "receiver.max_associations", "receiver.max_per_address", "receiver.max_object_mb", "receiver.request_timeout_s",
        "receiver.idle_timeout_s", "receiver.pdu_timeout_s", "tls.key", "tls.ca", "tls.require_client_certificate",
        "completion.quiet_s", "completion.called_ae_quiet_s", "completion.max_wait_s", "completion.association_hold_s",
        "completion.suspect", "completion_rules",
        "worker.memory_mb", "worker.timeout_s", "pipeline.spacing_mm", "pipeline.volumes", "pipeline.size",
        "pipeline.interpolation", "pipeline.labels", "lungs.threshold",
        "lungs.fill_structures", "lungs.structures", "lungs.closing_mm", "lungs.dilation_mm", "lungs.least_share_pct",
        "lungs.most_share_pct", "outputs.iso", "outputs.lungs", "outputs.preview",
        "outputs.mpr", "outputs.histogram", "outputs.surface", "outputs.seg", "outputs.sr", "outputs.report",
        "outputs.document", "outputs.derived", "outputs.window",
        "outputs.png16", "outputs.array", "outputs.array_clip_hu", "outputs.array_mean", "outputs.descriptions",
        "delivery.first_retry_s", "delivery.max_retry_s", "delivery.give_up_days",
        "delivery.timeout_s", "delivery.proof_wait_s", "delivery.late_s", "commitment.patience_s", "inbox.settle_s",
        "retention.originals_days", "retention.originals_gb", "retention.results_days", "retention.results_gb",
        "retention.floor_days", "retention.resent",
        "web.names", "web.origins", "web.max_upload_mb", "web.session_s",
        "log.level", "peers", "targets", "routing.match", "routes", "deidentification", "notify",
    }
)  # fmt: skip

# Keys whose value is the name of a file, which the service manager may provide as a credential instead.
FILES: Final = ("certificate", "key", "ca")
TARGET_FILES: Final = (*FILES, "token_file", "path")
NOTIFY_FILES: Final = ("ca", "token_file", "password_file")
WEB_FILES: Final = ("users", "certificate", "key")

LISTS: Final[Mapping[str, type[BaseModel]]] = {
    "peers": Peer,
    "targets": Target,
    "routes": Route,
    "completion_rules": CompletionRule,
    "notify": Notify,
    "deidentification": Deidentification,
}


def _all_keys() -> dict[str, Any]:
    keys: dict[str, Any] = {}
    for section, outer in Config.model_fields.items():
        model = outer.annotation
        if section in LISTS:
            keys[section] = outer
            model = LISTS[section]
        if isinstance(model, type) and issubclass(model, BaseModel):
            keys.update({f"{section}.{key}": inner for key, inner in model.model_fields.items()})
    return keys


KEYS: Final[Mapping[str, Any]] = _all_keys()
