"""Files through the front door from a browser: streamed to a file of the root, imported by a child."""

from __future__ import annotations

from typing import Final

UPLOAD_PATH: Final = "/api/v1/upload"
