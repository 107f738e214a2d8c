"""Another transfer syntax for a destination that refuses an object's own: decoded in a child, never in the sender.

Only what loses nothing: from one uncompressed syntax to the other, and from a compressed one to an uncompressed one,
with the same SOP Instance UID (PS3.5 10.1, PS3.3 C.12.4.1.1: a new one is due only where values change).
"""

from __future__ import annotations

import errno
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final, Self

EXPLICIT_LITTLE: Final = "1.2.840.10008.1.2.1"
IMPLICIT_LITTLE: Final = "1.2.840.10008.1.2"
EXPLICIT_BIG: Final = "1.2.840.10008.1.2.2"
UNCOMPRESSED: Final = (EXPLICIT_LITTLE, IMPLICIT_LITTLE)
_OS_ERROR: Final = "OSError "
_PIXEL_DATA: Final = "PixelData"


class Untranscodable(Exception):
    """The object cannot be written in another transfer syntax."""


def others(syntax: str, *, decompress: bool = True) -> tuple[str, ...]:
    """Return the transfer syntaxes that an object in ``syntax`` may be sent in instead, the best first."""
    if syntax in UNCOMPRESSED:
        return tuple(one for one in UNCOMPRESSED if one != syntax)
    return UNCOMPRESSED if decompress and syntax != EXPLICIT_BIG else ()


class Transcoder:
    """One child process that decodes, started when it is first needed; its files are gone when the block ends."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._child: subprocess.Popen[str] | None = None
        self._folder: Path | None = None
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def recode(self, path: Path, syntax: str) -> Path:
        """Write the object at ``path`` in another transfer syntax, and return the file.

        Raises
        ------
        Untranscodable
            If it cannot be decoded, or not within the time-out.
        OSError
            If it cannot be read, or its new form not be written, at the moment.
        """
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="ctnode-send-"))
        child = self._child = self._child or _start()
        self._count += 1
        # Two files at most: the one under way and the one that is ready.
        written = self._folder / f"{self._count % 3}.dcm"
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(json.dumps([str(path), str(written), syntax]) + "\n")
            child.stdin.flush()
        except OSError:
            self._stop()
            raise Untranscodable("the decoder ended") from None
        ready, _, _ = select.select([child.stdout], [], [], self._timeout_s)
        answer = child.stdout.readline().strip() if ready else "it takes too long"
        if answer != "ok":
            if not ready or not answer:
                self._stop()
            if answer.startswith(_OS_ERROR):
                number = int(answer.removeprefix(_OS_ERROR))
                raise OSError(number, f"{os.strerror(number)}, for its decoded form")
            raise Untranscodable(answer or "the decoder ended")
        return written

    def _stop(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.communicate()


def _start() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "ctnode.wire.transcode"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def recode(source: Path, written: Path, syntax: str) -> None:
    """Read a Part 10 file and write it in an uncompressed transfer syntax."""
    import pydicom
    from pydicom.uid import UID

    dataset = pydicom.dcmread(source)
    if dataset.file_meta.TransferSyntaxUID.is_compressed and _PIXEL_DATA in dataset:
        dataset.decompress(as_rgb=True, generate_instance_uid=False)
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    if syntax == IMPLICIT_LITTLE and _PIXEL_DATA in dataset:
        # PS3.5 A.1: implicit VR knows pixel data as OW only.
        dataset[_PIXEL_DATA].VR = "OW"
    pydicom.dcmwrite(written, dataset, implicit_vr=syntax == IMPLICIT_LITTLE, little_endian=True)


def main() -> None:
    """Serve orders from standard input, one a line, each answered by ``ok`` or the kind of fault."""
    for line in sys.stdin:
        source, written, syntax = json.loads(line)
        try:
            recode(Path(source), Path(written), syntax)
            answer = "ok"
        except OSError as error:
            answer = f"{_OS_ERROR}{error.errno or errno.EIO}"
        except Exception as error:  # noqa: BLE001 - the object's fault, whatever it is, is the answer
            answer = f"{type(error).__name__}"
        sys.stdout.write(answer + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
