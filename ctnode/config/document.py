"""The commented ``config.toml`` of the repository, rendered from the models, so that the two cannot drift apart."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from pydantic import BaseModel

from ctnode.config.models import LISTS, RELOADABLE, Config

_EXAMPLES: Final[Mapping[str, Mapping[str, object]]] = {
    "peers": {
        "name": "ct1",
        "ae_title": "CT1",
        "host": "192.0.2.10",
        "port": 104,
        "certificate": "ct1.hospital.example",
        "services": ["echo", "store"],
        "sop_classes": ["1.2.840.10008.5.1.4.1.1.2"],
        "max_associations": 8,
        "max_pdu": 131072,
        "max_object_mb": 1024,
        "idle_timeout_s": 300.0,
        "pdu_timeout_s": 300.0,
        "quiet_s": 5.0,
        "active_check": "image",
        "retrieve": "get",
        "query_ae_title": "PACS",
        "query_host": "192.0.2.20",
        "query_port": 104,
        "query_timeout_s": 30.0,
    },
    "targets": {
        "name": "pacs",
        "kind": "dicom",
        "ae_title": "PACS",
        "host": "192.0.2.20",
        "port": 104,
        "url": "",
        "token_file": "",
        "path": "",
        "send": ["report"],
        "associations": 1,
        "transcode": False,
        "proof": "none",
        "tls": True,
        "ca": "ca.pem",
        "certificate": "node.pem",
        "key": "node.key",
        "tls_name": "pacs.example",
        "external": False,
        "deidentify": "study-a",
    },
    "deidentification": {"name": "study-a", "project": "STUDYA", "key_file": "study-a.key"},
    "routes": {
        "name": "thin-chest",
        "when": 'SliceThickness <= 3 and verdict != "SUSPECT"',
        "level": "series",
        "required": [],
        "run": "pipeline",
        "send": ["report"],
        "to": ["pacs"],
        "priority": "normal",
    },
    "completion_rules": {
        "name": "slow-pacs",
        "called_ae": "CTNODE",
        "peer": "ct1",
        "modality": "CT",
        "quiet_s": 30.0,
        "max_wait_s": 3600.0,
        "association_hold_s": 120.0,
        "suspect": "hold",
        "count_images": True,
    },
    "notify": {
        "name": "duty",
        "kind": "webhook",
        "on": ["failed", "dead", "disk"],
        "interval_s": 300.0,
        "timeout_s": 20.0,
        "url": "https://chat.example/hooks/ctnode",
        "token_file": "",
        "host": "",
        "port": 587,
        "security": "starttls",
        "user": "",
        "password_file": "",
        "sender": "",
        "to": [],
        "ca": "",
        "command": [],
    },
}


def document() -> str:
    """Render the commented ``config.toml`` that lists every key with its default and its meaning."""
    lines = [
        "# Every key of ctnode with its default and its meaning. Delete what you do not change.",
        "# Found as --config FILE, $CTNODE_CONFIG, ./config.toml or /etc/ctnode/config.toml; any key can be set as",
        "# CTNODE_SECTION__KEY in the environment. `ctnode check-config` names each mistake; SIGHUP reloads what is",
        "# marked (reloads). Relative paths are relative to this file.",
    ]
    for section, outer in Config.model_fields.items():
        model = LISTS.get(section) or outer.annotation
        assert isinstance(model, type)
        assert issubclass(model, BaseModel)
        listed = section in LISTS
        lines += ["", f"# {(model.__doc__ or '').strip()}" + (" (reloads)" if section in RELOADABLE else "")]
        lines.append(f"# [[{section}]]" if listed else f"[{section}]")
        for key, inner in model.model_fields.items():
            value = _EXAMPLES[section][key] if listed else inner.get_default(call_default_factory=True)
            mark = " (reloads)" if f"{section}.{key}" in RELOADABLE else ""
            lines.append(f"{'# ' if listed else ''}{key} = {_toml(value)}  # {inner.description}{mark}")
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + "}"
    return json.dumps(value)
