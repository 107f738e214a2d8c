"""DICOMweb: objects stored by STOW-RS in streamed batches, and asked for by QIDO-RS (PS3.18 10.5, 10.6)."""

from __future__ import annotations

import http.client
import json
import secrets
import socket
import ssl
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import SplitResult, urljoin, urlsplit

from ctnode.archive.header import Meta
from ctnode.config import Target
from ctnode.wire.certificates import client_context, tls_fault, tls_words
from ctnode.wire.sender import Outcome, SendResult, outcome_of, read_readable
from ctnode.wire.transcode import EXPLICIT_LITTLE, UNCOMPRESSED, Transcoder, Untranscodable
from ctnode.words import ConfigError

BATCH_FILES: Final = 20
BATCH_BYTES: Final = 64 << 20
REDIRECTS: Final = 5
_PIECE_BYTES: Final = 1 << 20
_ANSWER_LIMIT_BYTES: Final = 16 << 20
_JSON: Final = "application/dicom+json"

_REFERENCED: Final = "00081199"
_FAILED: Final = "00081198"
_INSTANCE: Final = "00081155"
_REASON: Final = "00081197"
_SOP_INSTANCE: Final = "00080018"

# PS3.18 Table 10.5.3-1: what these say is said of the objects; everything else of the service as it is set up now.
# PS3.18 I.2.2: the transfer syntax is what is refused.
_SYNTAX_REFUSED: Final = frozenset({http.client.UNSUPPORTED_MEDIA_TYPE, 0xC122})
# Reasons of a widespread service: it has the object already, or is just storing it for another request.
_STORED_BEFORE: Final = 0xB00E
_BEING_STORED: Final = 0xB00F
_OF_THE_OBJECTS: Final = frozenset({400, 409, 413, 415, 422})
_STORED: Final = frozenset({200, 202})


class WebFault(Exception):
    """The service cannot be asked, or does not answer as such a service does.

    Parameters
    ----------
    why
        In words, without anything of the other side's text.
    status
        HTTP status, if there was one.
    went_out
        Whether the whole request had gone out.
    """

    def __init__(self, why: str, *, status: int | None = None, went_out: bool = False) -> None:
        super().__init__(why)
        self.why = why
        self.status = status
        self.went_out = went_out


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    location: str
    content: bytes


class Service:
    """One DICOMweb service over one kept connection, for one thread; closed when the block ends."""

    def __init__(self, target: Target, timeout_s: float) -> None:
        self._target = target
        self._timeout_s = timeout_s
        self._root = target.url.rstrip("/")
        self._connection: http.client.HTTPConnection | None = None
        self._place = ""
        self._transcoder = Transcoder(timeout_s)
        self.tls = ""

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        self._transcoder.__exit__()

    def store(self, files: Sequence[Path]) -> Iterator[SendResult]:
        """Store Part 10 files; what a batch is refused for as a whole is tried one by one.

        Yields
        ------
        SendResult
            One for each file, as ``sender.send`` does; the status is that of HTTP, or the failure reason of the object.
        """
        readable: list[tuple[Path, Meta]] = []
        for one in read_readable(files):
            if isinstance(one, SendResult):
                yield one
            else:
                readable.append(one)
        is_well = True
        for batch in _batches(readable):
            if not is_well:
                yield from (SendResult(path, Outcome.UNTRIED, None, "the service failed before") for path, _ in batch)
                continue
            for result in self._store_batch(batch):
                is_well = is_well and not result.is_fault
                yield result

    def _store_batch(self, batch: Sequence[tuple[Path, Meta]]) -> Iterator[SendResult]:
        try:
            answer = self._post(batch)
        except WebFault as fault:
            outcome = Outcome.RETRY if fault.went_out else Outcome.UNTRIED
            for path, _meta in batch:
                yield SendResult(path, outcome, fault.status, fault.why, is_fault=True, may_have_arrived=fault.went_out)
            return
        except OSError as error:
            for path, _meta in batch:
                yield SendResult(path, Outcome.RETRY, None, f"cannot read the file: {error.strerror}")
            return
        stored, failed = _outcomes(answer.content)
        is_broken = answer.status == http.client.INTERNAL_SERVER_ERROR
        if (is_broken or answer.status in _OF_THE_OBJECTS) and not failed and not stored:
            if len(batch) == 1 and is_broken:
                # Perhaps one object does it to the service: it alone waits, and the next ones show.
                yield SendResult(batch[0][0], Outcome.RETRY, answer.status, f"HTTP status {answer.status}")
                return
            if len(batch) == 1:
                words = f"HTTP status {answer.status}"
                yield self._or_decoded(*batch[0], SendResult(batch[0][0], Outcome.DEAD, answer.status, words))
                return
            for one in batch:
                yield from self._store_batch([one])
            return
        for path, meta in batch:
            yield self._or_decoded(path, meta, _result(path, meta.sop_instance, answer.status, stored, failed))

    def _or_decoded(self, path: Path, meta: Meta, result: SendResult) -> SendResult:
        """Send an object decoded that is refused in its transfer syntax, where the configuration allows it."""
        is_refused = result.outcome is Outcome.DEAD and result.status in _SYNTAX_REFUSED
        if not (is_refused and self._target.transcode) or meta.transfer_syntax in UNCOMPRESSED:
            return result
        try:
            decoded = self._transcoder.recode(path, EXPLICIT_LITTLE)
        except Untranscodable as error:
            return replace(result, comment=f"cannot be transcoded: {error}")
        except OSError as error:
            return replace(result, outcome=Outcome.RETRY, comment=f"cannot read the file: {error.strerror}")
        (again,) = self._store_batch([(decoded, replace(meta, transfer_syntax=EXPLICIT_LITTLE))])
        return replace(again, path=path)

    def _post(self, batch: Sequence[tuple[Path, Meta]]) -> _Answer:
        boundary = secrets.token_hex(16)
        head = f"\r\n--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        tail = f"\r\n--{boundary}--\r\n".encode()
        sizes = [path.stat().st_size for path, _ in batch]
        headers = {
            "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
            "Content-Length": str(sum(sizes) + len(head) * len(batch) + len(tail)),
        }

        def body() -> Iterator[bytes]:
            for (path, _meta), size in zip(batch, sizes, strict=True):
                yield head
                left = size
                with path.open("rb", buffering=0) as file:
                    while left:
                        piece = file.read(min(_PIECE_BYTES, left))
                        if not piece:
                            raise WebFault("a file is shorter than it was")
                        left -= len(piece)
                        yield piece
            yield tail

        answer = self._ask("POST", f"{self._root}/studies", headers, body)
        if answer.status in {*_STORED, *_OF_THE_OBJECTS, http.client.INTERNAL_SERVER_ERROR}:
            return answer
        raise WebFault(f"HTTP status {answer.status}", status=answer.status)

    def held(self, study: str, series: str, instances: Sequence[str]) -> frozenset[str]:
        """Return those of ``instances`` that the service has.

        Raises
        ------
        WebFault
            If it does not answer the query.
        """
        place = f"{self._root}/studies/{study}/series/{series}/instances"
        found = self._query(place)
        wanted = frozenset(instances)
        # A service may show a part of a long list only.
        for missing in sorted(wanted - found):
            found |= self._query(f"{place}?SOPInstanceUID={missing}")
        return wanted & found

    def ping(self) -> None:
        """Ask for one study at most.

        Raises
        ------
        WebFault
            If the service does not answer the query.
        """
        self._query(f"{self._root}/studies?limit=1")

    def _query(self, url: str) -> frozenset[str]:
        answer = self._ask("GET", url, {}, None)
        if answer.status == http.client.NO_CONTENT or (answer.status == http.client.NOT_FOUND and "/series/" in url):
            return frozenset()
        if answer.status != http.client.OK:
            raise WebFault(f"HTTP status {answer.status}", status=answer.status)
        try:
            rows = json.loads(answer.content or b"[]")
            return frozenset(str(value) for row in rows for value in row.get(_SOP_INSTANCE, {}).get("Value", ()))
        except (ValueError, AttributeError, TypeError):
            raise WebFault("the answer is no list of objects", went_out=True) from None

    # ------------------------------------------------------------------------------------------ HTTP

    def _ask(self, method: str, url: str, headers: Mapping[str, str], body: Any) -> _Answer:
        own = urlsplit(url)
        for _ in range(REDIRECTS + 1):
            parts = urlsplit(url)
            sent = {"Accept": _JSON, **headers}
            token = self._token()
            # The token is for the service that is configured, not for where it points to.
            if token and (parts.scheme, parts.netloc) == (own.scheme, own.netloc):
                sent["Authorization"] = token
            answer = self._once(method, parts, sent, body)
            if answer.status not in {301, 302, 307, 308} or not answer.location:
                return answer
            url = urljoin(url, answer.location)
            if own.scheme == "https" and urlsplit(url).scheme != "https":
                raise WebFault("it redirects from https to something else", status=answer.status)
        raise WebFault("it redirects without end")

    def _token(self) -> str:
        if not self._target.token_file:
            return ""
        try:
            return Path(self._target.token_file).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            raise WebFault("token_file cannot be read") from None

    def _once(self, method: str, parts: SplitResult, headers: Mapping[str, str], body: Any) -> _Answer:
        connection = self._connected(parts)
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        went_out = False
        try:
            try:
                connection.request(method, path, body=body() if body else None, headers=dict(headers))
                went_out = True
            except (BrokenPipeError, ConnectionResetError):
                # It may have answered before it had read all, and closed.
                went_out = False
            answer = connection.getresponse()
            content = answer.read(_ANSWER_LIMIT_BYTES + 1)
            location = answer.headers.get("Location", "")
            if len(content) > _ANSWER_LIMIT_BYTES:
                raise WebFault("the answer is too long", went_out=went_out)
            if not went_out or answer.will_close:
                self._close()
            return _Answer(answer.status, location, content)
        except WebFault:
            self._close()
            raise
        except TimeoutError:
            self._close()
            raise WebFault("no answer", went_out=went_out) from None
        except (http.client.HTTPException, ConnectionError, ssl.SSLError):
            self._close()
            raise WebFault("the connection ended", went_out=went_out) from None

    def _connected(self, parts: SplitResult) -> http.client.HTTPConnection:
        place = f"{parts.scheme}://{parts.netloc}"
        if self._connection is not None and self._place == place and self._connection.sock is not None:
            return self._connection
        self._close()
        try:
            if parts.scheme == "https":
                context = client_context(self._target)
                connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                    parts.hostname or "", parts.port, timeout=self._timeout_s, context=context
                )
            elif parts.scheme == "http":
                connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=self._timeout_s)
            else:
                raise WebFault("it redirects to something that is not http")
            connection.connect()
        except ConfigError as error:
            raise WebFault(error.message) from None
        except (socket.gaierror, UnicodeError):
            raise WebFault("the host is not known") from None
        except (OSError, ValueError) as error:
            late = isinstance(error, TimeoutError)
            why = "no answer" if late else tls_fault(error).lower() if isinstance(error, OSError) else "no such port"
            raise WebFault(f"no connection: {why}") from None
        if isinstance(connection.sock, ssl.SSLSocket):
            self.tls = tls_words(connection.sock)
        self._connection, self._place = connection, place
        return connection

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _result(path: Path, uid: str, status: int, stored: frozenset[str], failed: Mapping[str, int]) -> SendResult:
    if uid in failed:
        reason = failed[uid]
        if reason == _STORED_BEFORE:
            return SendResult(path, Outcome.SENT, reason, "it has it already")
        outcome = Outcome.RETRY if reason == _BEING_STORED else outcome_of(reason)
        words = f"HTTP status {status}, failure reason {reason:04X}H"
        # A failure without a known reason is one all the same.
        return SendResult(path, Outcome.DEAD if outcome is Outcome.SENT else outcome, reason, words)
    if status == http.client.OK or uid in stored:
        return SendResult(path, Outcome.SENT, status, "")
    return SendResult(path, Outcome.RETRY, status, "the answer does not name it", may_have_arrived=True)


def _outcomes(content: bytes) -> tuple[frozenset[str], Mapping[str, int]]:
    """Return what was stored, and the failure reason of what was not (PS3.18 I.2.2)."""
    try:
        found = json.loads(content or b"{}")
        whole = found if isinstance(found, list) else [found]
        stored = {str(uid) for one in whole for item in _values(one, _REFERENCED) for uid in _values(item, _INSTANCE)}
        failed = {
            str(uid): int(next(iter(_values(item, _REASON)), 0))
            for one in whole
            for item in _values(one, _FAILED)
            for uid in _values(item, _INSTANCE)
        }
    except (ValueError, AttributeError, TypeError):
        return frozenset(), {}
    return frozenset(stored), failed


def _values(item: Any, tag: str) -> Sequence[Any]:
    return item.get(tag, {}).get("Value") or ()


def _batches(files: Sequence[tuple[Path, Meta]]) -> Iterator[list[tuple[Path, Meta]]]:
    batch: list[tuple[Path, Meta]] = []
    size = 0
    for path, meta in files:
        try:
            own = path.stat().st_size
        except OSError:
            own = 0
        if batch and (len(batch) == BATCH_FILES or size + own > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append((path, meta))
        size += own
    if batch:
        yield batch
