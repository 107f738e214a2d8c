"""What is offered, and in which order of preference."""

from __future__ import annotations

import pytest
from pydicom.uid import UID, AllTransferSyntaxes, DeflatedExplicitVRLittleEndian
from pynetdicom import AllStoragePresentationContexts
from pynetdicom.presentation import build_context, negotiate_as_acceptor

from ctnode.wire.contexts import STORAGE_SYNTAXES, needed_contexts, supported_contexts
from ctnode.wire.service_classes import SERVICES

pytestmark = pytest.mark.unit

CT = "1.2.840.10008.5.1.4.1.1.2"


def test_the_services_and_every_standard_storage_class_are_served() -> None:
    expected = {str(context.abstract_syntax) for context in AllStoragePresentationContexts} | set(SERVICES)
    assert set(supported_contexts()) == expected
    assert len(expected) > 150


def test_uncompressed_then_lossless_then_lossy_then_big_endian() -> None:
    def rank(uid: str) -> int:
        syntax = UID(uid)
        if not syntax.is_compressed:
            return 0 if syntax.is_little_endian else 3
        return 2 if uid.rpartition(".")[2] in {"50", "51", "81", "91", "203"} else 1

    ranks = [rank(uid) for uid in STORAGE_SYNTAXES]
    assert ranks == sorted(ranks)
    assert set(ranks) == {0, 1, 2, 3}
    assert STORAGE_SYNTAXES[:2] == ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2")
    assert len(set(STORAGE_SYNTAXES)) == len(STORAGE_SYNTAXES)


def test_all_are_transfer_syntaxes_and_deflated_is_none_of_them() -> None:
    assert {UID(uid) for uid in STORAGE_SYNTAXES} <= set(AllTransferSyntaxes)
    assert str(DeflatedExplicitVRLittleEndian) not in STORAGE_SYNTAXES


def test_built_once_and_shared() -> None:
    assert supported_contexts() is supported_contexts()
    proposed = [build_context(CT), build_context(CT), build_context("1.2.3")]
    assert needed_contexts(supported_contexts(), proposed, lambda _uid: True) == [supported_contexts()[CT]]
    assert needed_contexts(supported_contexts(), proposed, lambda _uid: True)[0] is supported_contexts()[CT]


def test_negotiation_takes_our_order_and_changes_nothing_that_is_shared() -> None:
    shared = supported_contexts()[CT]
    before = str(shared), shared.context_id, list(shared.transfer_syntax)
    proposed = build_context(CT, ["1.2.840.10008.1.2.2", "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.90"])
    proposed.context_id = 1
    (result,), _roles = negotiate_as_acceptor(
        [proposed], needed_contexts(supported_contexts(), [proposed], lambda _uid: True)
    )
    assert [str(uid) for uid in result.transfer_syntax] == ["1.2.840.10008.1.2.4.90"]
    assert (str(shared), shared.context_id, list(shared.transfer_syntax)) == before
    assert result is not shared
