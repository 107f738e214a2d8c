"""The language of ``when``: small, without eval, typed against the DICOM dictionary before anything is received."""

from ctnode.config.when.evaluate import Answer, Facts, Value, evaluate
from ctnode.config.when.names import Kind, WhenError
from ctnode.config.when.syntax import Expression, names_of, parse, show
from ctnode.config.when.typed import compile_when, uses_results

__all__ = [
    "Answer",
    "Expression",
    "Facts",
    "Kind",
    "Value",
    "WhenError",
    "compile_when",
    "evaluate",
    "names_of",
    "parse",
    "show",
    "uses_results",
]
