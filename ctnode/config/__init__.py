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
from ctnode.config.retention import Retention
from ctnode.config.routes import ORIGINALS, Route, Routing
from ctnode.config.rules import CompletionRule
from ctnode.config.telling import ALERT_KINDS, Audit, Notify
from ctnode.config.web import Web

__all__ = [
    "ALERT_KINDS",
    "ORIGINALS",
    "RELOADABLE",
    "Audit",
    "Change",
    "Commitment",
    "Completion",
    "CompletionRule",
    "Config",
    "Deidentification",
    "Delivery",
    "Inbox",
    "Loaded",
    "Log",
    "LungMask",
    "Node",
    "Notify",
    "Outputs",
    "Peer",
    "Pipeline",
    "Receiver",
    "Retention",
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
