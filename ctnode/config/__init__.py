"""The configuration: every key has a default that works; unknown keys are errors that name the nearest known one."""

from ctnode.config.document import document
from ctnode.config.loading import Change, Loaded, diff, explain, load, reloaded, require_root
from ctnode.config.models import (
    RELOADABLE,
    Completion,
    Config,
    Delivery,
    Inbox,
    Log,
    LungMask,
    Node,
    Outputs,
    Peer,
    Pipeline,
    Receiver,
    Storage,
    Target,
    Tls,
    Worker,
)

__all__ = [
    "RELOADABLE",
    "Change",
    "Completion",
    "Config",
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
    "Storage",
    "Target",
    "Tls",
    "Worker",
    "diff",
    "document",
    "explain",
    "load",
    "reloaded",
    "require_root",
]
