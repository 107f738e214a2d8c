"""Negotiation gives what pynetdicom's own gives, name by name and byte by byte."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import UID
from pynetdicom.pdu import A_ASSOCIATE_AC
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.presentation import PresentationContext, build_context, negotiate_as_acceptor

from ctnode.wire.command import Malformed
from ctnode.wire.negotiation import ResultItems, name, negotiate, proposed_context

pytestmark = pytest.mark.unit

CLASSES = [b"1.2.3.%d" % number for number in range(5)]
SYNTAXES = [b"1.2.840.10008.1.2", b"1.2.840.10008.1.2.1", b"1.2.840.10008.1.2.2", b"1.2.840.10008.1.2.4.70"]
Proposal = tuple[int, bytes, list[bytes]]

proposals = st.lists(
    st.tuples(
        st.integers(0, 127).map(lambda half: 2 * half + 1),
        st.sampled_from(CLASSES),
        st.lists(st.sampled_from(SYNTAXES), min_size=1, max_size=6),
    ),
    unique_by=lambda proposal: proposal[0],
    max_size=20,
)
supports = st.dictionaries(
    st.sampled_from(CLASSES),
    st.tuples(st.lists(st.sampled_from(SYNTAXES), min_size=1, unique=True), st.booleans()),
)
wanted_roles = st.dictionaries(
    st.sampled_from(CLASSES).map(lambda raw: UID(raw.decode())), st.tuples(st.booleans(), st.booleans())
)


def by_pynetdicom(number: int, abstract: bytes, transfer: Sequence[bytes]) -> PresentationContext:
    context = PresentationContext()
    context.context_id = number
    context.abstract_syntax = abstract  # type: ignore[assignment]
    for syntax in transfer:
        context.add_transfer_syntax(syntax)
    return context


def told(context: PresentationContext) -> tuple[object, ...]:
    return (
        context.context_id, context.abstract_syntax, context.transfer_syntax, context.result, context.as_scu,
        context.as_scp,
    )  # fmt: skip


@given(proposals, supports, wanted_roles)
def test_the_results_are_those_of_pynetdicom(
    proposed: list[Proposal],
    supported: dict[bytes, tuple[list[bytes], bool]],
    roles: dict[UID, tuple[bool, bool]],
) -> None:
    has = []
    for abstract, (transfer, has_roles) in supported.items():
        context = build_context(UID(abstract.decode()), [syntax.decode() for syntax in transfer])
        if has_roles:
            context.scu_role = context.scp_role = True
        has.append(context)
    results, answers = negotiate([proposed_context(*one) for one in proposed], has, roles)
    wanted, wanted_answers = negotiate_as_acceptor([by_pynetdicom(*one) for one in proposed], has, dict(roles))
    # Where the acceptor has nothing at all pynetdicom leaves the order and the roles open.
    wanted.sort(key=lambda context: context.context_id or 0)
    assert [told(one)[: None if has else 4] for one in results] == [told(one)[: None if has else 4] for one in wanted]
    assert [(one.sop_class_uid, one.scu_role, one.scp_role) for one in answers] == [
        (one.sop_class_uid, one.scu_role, one.scp_role) for one in wanted_answers
    ]

    primitive = A_ASSOCIATE()
    primitive.presentation_context_definition_results_list = wanted
    items = A_ASSOCIATE_AC(_with_titles(primitive)).variable_items[1:-1]
    assert ResultItems(results).encode() == b"".join(item.encode() for item in items)
    assert len(ResultItems(results)) == sum(len(item) for item in items)


def _with_titles(primitive: A_ASSOCIATE) -> A_ASSOCIATE:
    primitive.calling_ae_title = primitive.called_ae_title = "X"
    primitive.application_context_name = UID("1.2.840.10008.3.1.1.1")
    return primitive


def test_names_are_padded_with_one_nul_and_no_longer_than_a_uid() -> None:
    assert name(b"1.2.3\0") == name(b"1.2.3") == "1.2.3"
    assert name(b"1" * 64) == "1" * 64
    for raw in (b"1" * 65, b"1.2.\xb2"):
        with pytest.raises(Malformed):
            name(raw)


def test_a_context_of_empty_syntaxes_is_refused_and_harms_nobody() -> None:
    (result,), _ = negotiate(
        [proposed_context(1, b"1.2.3", [b""])], [build_context("1.2.3", ["1.2.840.10008.1.2"])], {}
    )
    assert result.result == 4
    assert ResultItems([result]).encode() == bytes.fromhex("21000008 01000400 40000000")
