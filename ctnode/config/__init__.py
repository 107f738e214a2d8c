"""The configuration: every key has a default that works; unknown keys are errors that name the nearest known one."""

from ctnode.config.document import document
from ctnode.config.loading import Change, Loaded, diff, explain, from_words, load, reloaded, require_root
from ctnode.config.models import (
    RELOADABLE,
    Commitment,
    Completion,
    Config,
    Delivery,
    Inbox,
    Log,
    LungMask,
    Node,
    Outputs,
    Pipeline,
    Receiver,
    Storage,
    Target,
    Tls,
    Worker,
)
from ctnode.config.peer import Peer
from ctnode.config.privacy import Deidentification
from ctnode.config.routes import ORIGINALS, Route, Routing
from ctnode.config.web import Web

__all__ = [
    "ORIGINALS",
    "RELOADABLE",
    "Change",
    "Commitment",
    "Completion",
    "Config",
    "Deidentification",
    "Delivery",
    "Inbox",
    "Loaded",
    "Log",
    "LungMask",
    "Node",
    "Outputs",
    "Peer",
    "Pipeline",
    "Receiver",
    "Route",
    "Routing",
    "Storage",
    "Target",
    "Tls",
    "Web",
    "Worker",
    "diff",
    "document",
    "explain",
    "from_words",
    "load",
    "reloaded",
    "require_root",
]
