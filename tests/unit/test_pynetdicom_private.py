"""What ``ctnode.wire.reactor`` relies on inside pynetdicom 3.0, so that an upgrade shows itself here first."""

from __future__ import annotations

import inspect
import queue
import threading

import pynetdicom
import pytest
from pydicom.uid import UID
from pynetdicom import AE, evt
from pynetdicom import fsm as state_machine
from pynetdicom.acse import ACSE
from pynetdicom.association import Association, ServiceUser
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dul import DULServiceProvider
from pynetdicom.pdu import A_ASSOCIATE_AC
from pynetdicom.pdu_items import ApplicationContextItem, UserInformationItem
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import AddressInformation, AssociationSocket

pytestmark = pytest.mark.unit


def source(of: object) -> str:
    return inspect.getsource(of)  # type: ignore[arg-type]


def test_the_version_that_was_read() -> None:
    assert pynetdicom.__version__.startswith("3.0.")


def test_an_association_has_the_parts_that_are_replaced() -> None:
    association = Association(AE("X"), "acceptor")
    assert isinstance(association.acse, ACSE)
    assert isinstance(association.dul, DULServiceProvider)
    assert isinstance(association.dimse, DIMSEServiceProvider)
    assert isinstance(association.acceptor, ServiceUser)
    assert isinstance(association._reactor_checkpoint, threading.Event)
    assert isinstance(association._handlers, dict)
    assert association._kill is False
    assert association._is_paused is False
    assert association._accepted_cx == {}
    assert association._started_dul is False
    assert "self._bind_defaults()" in source(Association.__init__)
    assert "make_target(self.run_reactor)" in source(Association.__init__)


def test_no_thread_is_waited_for_where_none_is_alive() -> None:
    assert "while self.dul.is_alive() and not self.dul.stop_dul()" in source(Association.kill)


def test_sending_waits_for_the_pause_and_takes_responses_from_the_queue() -> None:
    text = source(Association.send_n_event_report)
    for line in (
        "self._reactor_checkpoint.clear()",
        "while not self._is_paused",
        "self.dimse.send_msg(req",
        "self.dimse.get_msg(block=True)",
        "self._reactor_checkpoint.set()",
    ):
        assert line in text
    assert "self.msg_queue.get(block=block, timeout=self.dimse_timeout)" in source(DIMSEServiceProvider.get_msg)
    assert "self.dul.send_pdu(pdata)" in source(DIMSEServiceProvider.send_msg)


def test_serving_sets_the_pause_and_resets_it() -> None:
    text = source(Association._serve_request)
    assert "self._is_paused = True" in text
    assert "self._is_paused = False" in text
    assert "context = self._accepted_cx[context_id]" in text


def test_the_state_machine_takes_from_the_queues_that_are_filled_here() -> None:
    for action, line in (
        (state_machine.AE_6, "dul._recv_pdu.get(False)"),
        (state_machine.AE_7, "dul.to_provider_queue.get(False)"),
        (state_machine.AE_8, "dul.to_provider_queue.get(False)"),
        (state_machine.DT_1, "dul.to_provider_queue.get(False)"),
        (state_machine.AR_2, "dul._recv_pdu.get(False)"),
        (state_machine.AR_4, "dul.to_provider_queue.get(False)"),
        (state_machine.AA_3, "dul._recv_pdu.get(False)"),
        (state_machine.AA_4, "dul.to_user_queue.put"),
    ):
        assert line in source(action)
    for action in (state_machine.AR_5, state_machine.AA_2, state_machine.AA_3, state_machine.AA_4, state_machine.AA_5):
        assert "dul.kill_dul()" in source(action)
    assert "self.dul.kill_dul()" in source(state_machine.StateMachine.do_action)
    assert "raise InvalidEventError" in source(state_machine.StateMachine.do_action)


def test_the_transitions_that_are_relied_on() -> None:
    table = state_machine.TRANSITION_TABLE
    assert table["Evt5", "Sta1"] == "AE-5"
    assert table["Evt18", "Sta2"] == "AA-2"
    assert table["Evt19", "Sta2"] == "AA-1"
    assert table["Evt19", "Sta6"] == table["Evt6", "Sta6"] == "AA-8"
    assert table["Evt17", "Sta6"] == "AA-4"
    assert table["Evt17", "Sta13"] == "AR-5"
    assert table["Evt15", "Sta6"] == "AA-1"
    # Every event of the peer fits every state with a connection, but for those before a request was answered.
    peer_events = {f"Evt{number}" for number in (3, 4, 6, 10, 12, 13, 16, 17, 19)}
    for number in (2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13):
        state = f"Sta{number}"
        missing = {event for event in peer_events if (event, state) not in table}
        assert not missing, (state, missing)


def test_the_upper_layer_has_the_members_that_are_used() -> None:
    association = Association(AE("X"), "acceptor")
    dul = association.dul
    for name in ("event_queue", "to_provider_queue", "to_user_queue", "_recv_pdu"):
        assert isinstance(getattr(dul, name), queue.Queue)
    assert dul._kill_thread is False
    assert dul.socket is None
    assert dul.state_machine.current_state == "Sta1"
    assert dul._process_recv_primitive() is False
    assert "self.event_queue.put(event)" in source(DULServiceProvider._process_recv_primitive)
    assert list(inspect.signature(DULServiceProvider._decode_pdu).parameters) == ["self", "bytestream"]
    assert "self.to_user_queue.get(block=wait, timeout=timeout)" in source(DULServiceProvider.receive_pdu)


def test_a_connected_socket_announces_itself_and_sends_through_send() -> None:
    assert 'self.event_queue.put("Evt5")' in source(AssociationSocket.__init__)
    assert "self.socket.send(pdu.encode())" in source(DULServiceProvider._send)
    assert list(inspect.signature(AssociationSocket.send).parameters) == ["self", "bytestream"]


def test_negotiation_leaves_what_it_is_replaced_by_to_leave() -> None:
    """What ``SyncAcse.accept`` sets is all that pynetdicom's own sets where nobody handles extended negotiation."""
    text = source(ACSE._negotiate_as_acceptor)
    for line in (
        "self.requestor.ae_title = assoc_rq.calling_ae_title",
        "for uid, item in self.requestor.role_selection.items()",
        "self.assoc._accepted_cx =",
        "self.assoc._rejected_cx =",
        "self.acceptor.add_negotiation_item(role_item)",
        "self.assoc.is_established = True",
    ):
        assert line in text
    assert text.index("self.assoc._rejected_cx =") < text.index("self.send_accept()")
    answer = source(ACSE.send_accept)
    assert answer.count("primitive.") == 7
    assert "primitive.user_information = self.acceptor.user_information" in answer


def test_a_context_is_made_of_what_is_set_here() -> None:
    assert set(vars(PresentationContext())) == {
        "_context_id", "_abstract_syntax", "_transfer_syntax", "result", "_scu_role", "_scp_role", "_as_scp", "_as_scu",
    }  # fmt: skip


def test_an_acceptance_is_made_of_items_with_the_contexts_behind_the_first() -> None:
    assert "dul._send(A_ASSOCIATE_AC(primitive))" in source(state_machine.AE_7)
    assert "primitive = recv_pdu.to_primitive()" in source(state_machine.AE_6)
    assert "length += len(item)" in source(A_ASSOCIATE_AC.pdu_length.fget)
    assert "bytestream += item.encode()" in source(A_ASSOCIATE_AC._wrap_encode_items)
    primitive = A_ASSOCIATE()
    primitive.calling_ae_title = primitive.called_ae_title = "X"
    primitive.application_context_name = UID("1.2.840.10008.3.1.1.1")
    first, last = A_ASSOCIATE_AC(primitive).variable_items
    assert isinstance(first, ApplicationContextItem)
    assert isinstance(last, UserInformationItem)


def test_default_handlers_of_interventions_can_be_shared() -> None:
    association = Association(AE("X"), "acceptor")
    for event in evt._INTERVENTION_EVENTS:
        assert association._handlers[event] == (evt.get_default_handler(event), None)


def test_an_address_is_made_of_what_is_set_here() -> None:
    made = AddressInformation("127.0.0.1", 104)
    assert set(vars(made)) == {"_addr", "port", "scope_id", "flowinfo"}
    assert made._addr == "127.0.0.1"
