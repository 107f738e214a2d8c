"""The life of a node: start, stop, reload, restart, other doors, limits, backup, rebuild."""

from __future__ import annotations

import os
import signal
import socket
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.harness import (
    CEILING_S,
    LOOPBACK,
    Node,
    data_set_of,
    descendants,
    is_gone,
    philips_chest,
    run_tool,
    send_as_is,
    series_of,
    small_series,
    sop_and_digest,
    storescp,
    storescu,
    wait_until,
)
from tests.wire_peers import RawPeer

pytestmark = pytest.mark.acceptance

SUCCESS = 0x0000
# Run as the service manager does: the listening socket is descriptor 3 of the process that LISTEN_PID names.
HAND_OVER = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3, inheritable=True);"
    " os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1'); os.execv(sys.argv[2], sys.argv[2:])"
)


def exit_code(node: Node) -> int:
    """Return how a node ends that cannot start."""
    process = node.process or node.launch()
    return process.wait(CEILING_S)


# --------------------------------------------------------------------------------------------------- stopping


def test_sigterm_lets_an_open_association_finish(tmp_path: Path) -> None:
    uid, files = small_series(tmp_path, 1)
    with Node(tmp_path / "node") as node:
        assert node.process is not None
        port = node.port
        with RawPeer(port) as peer:
            peer.associate()
            for number, file in enumerate(files):
                assert peer.store(sop_and_digest(file)[0], data_set_of(file)).status == SUCCESS
                if number == 2:
                    node.process.terminate()
                    wait_until(lambda: _is_refused(port), "the node accepts no more")
            peer.release()
        assert node.process.wait(CEILING_S) == 0
        assert not node.strays()
        assert node.is_journal_empty(), "the last thing a node does is to settle"
        node.check_promises(dict(map(sop_and_digest, files)))
        node.start()
        assert node.wait_series(uid).instances == len(files)


def _is_refused(port: int) -> bool:
    try:
        socket.create_connection((LOOPBACK, port)).close()
    except ConnectionRefusedError:
        return True
    return False


def test_sigterm_aborts_an_association_that_never_ends(tmp_path: Path) -> None:
    _, files = small_series(tmp_path, 1)
    with Node(tmp_path / "node", node={"drain_s": 0.5}) as node, RawPeer(node.port) as peer:
        peer.associate()
        assert peer.store(sop_and_digest(files[0])[0], data_set_of(files[0])).status == SUCCESS
        assert node.terminate() == 0
        assert peer.is_closed()
        node.check_promises(dict([sop_and_digest(files[0])]))


def test_all_roles_end_with_their_supervisor(tmp_path: Path) -> None:
    uid, files = small_series(tmp_path, 1)
    with Node(tmp_path / "node") as node:
        roles = descendants(node.pid)
        assert len(roles) >= 5
        gives_way = {
            name: os.getpriority(os.PRIO_PROCESS, pid) for name, pids in node.whole_roles().items() for pid in pids
        }
        # On a busy machine senders come first: what is computed waits for what is received.
        assert gives_way["receiver"] == gives_way["receive"] == gives_way["run"]
        assert gives_way["work"] > gives_way["deliver"] > gives_way["keep"] > gives_way["receive"]
        assert [answer.status for answer in send_as_is(node.port, files)] == [SUCCESS] * len(files)
        os.kill(node.pid, signal.SIGKILL)
        wait_until(lambda: all(map(is_gone, roles)), "every role ends")
        wait_until(lambda: not node.strays(), "nothing of the node is left")
        assert node.process is not None
        node.process.wait(CEILING_S)
        node.start()
        assert node.wait_series(uid).instances == len(files)
        node.check_promises(dict(map(sop_and_digest, files)))


# --------------------------------------------------------------------------------------------------- starting


def test_second_node_on_a_root_is_refused(tmp_path: Path) -> None:
    with (
        Node(tmp_path / "first") as first,
        _quiet(Node(tmp_path / "second", storage={"root": str(first.root)})) as node,
    ):
        assert exit_code(node) == 69
        assert "root" in node.log_tail()
        assert run_tool("echoscu", LOOPBACK, first.port).returncode == 0


@contextmanager
def _quiet(node: Node) -> Iterator[Node]:
    """Give a node that is launched by the test itself, and leave nothing of it."""
    try:
        yield node
    finally:
        node.kill()


def test_unknown_key_is_named_with_its_nearest(tmp_path: Path) -> None:
    with _quiet(Node(tmp_path / "node", completion={"quite_s": 3})) as node:
        assert exit_code(node) == 78
        assert "completion.quite_s" in node.log_tail()
        assert "completion.quiet_s" in node.log_tail()
        assert not node.root.exists()


def test_open_to_others_without_peers_is_refused(tmp_path: Path) -> None:
    with _quiet(Node(tmp_path / "node", node={"host": "0.0.0.0"})) as node:
        assert exit_code(node) == 78
        assert "peers" in node.log_tail()


@contextmanager
def handed_over(node: Node, host: str) -> Iterator[int]:
    """Launch a node with a listening socket that somebody else has bound, and yield its port."""
    with socket.create_server((host, 0)) as listener:
        number = listener.fileno()
        prefix = [sys.executable, "-c", HAND_OVER, str(number)]
        with _quiet(node):
            node.launch(prefix=prefix, pass_fds=[number])
            yield int(listener.getsockname()[1])


def test_socket_of_the_service_manager_is_used(tmp_path: Path) -> None:
    node = Node(tmp_path / "node")
    with handed_over(node, LOOPBACK) as port:
        wait_until(lambda: "receive" in node.roles() and node.counters("receive"), "the receiver tells its port")
        assert node.port == port
        assert run_tool("echoscu", LOOPBACK, port).returncode == 0
        assert node.terminate() == 0


def test_socket_that_is_open_to_others_does_not_bypass_the_rule(tmp_path: Path) -> None:
    node = Node(tmp_path / "node")
    with handed_over(node, "0.0.0.0"):
        assert exit_code(node) == 78
        assert "peers" in node.log_tail()


def test_sighup_takes_over_what_it_can_and_names_the_rest(tmp_path: Path) -> None:
    uid, files = small_series(tmp_path, 1)
    with Node(tmp_path / "node", completion={"quiet_s": 3600.0}) as node:
        # The receiver processes are told by the acceptor, which speaks for them.
        expected = len(node.whole_roles().keys() - {"receiver"})
        node.configure(completion={"quiet_s": 0.5}, receiver={"processes": 3})
        assert node.process is not None
        node.process.send_signal(signal.SIGHUP)
        node.wait_for(lambda: len(node.events("configuration reloaded")) >= expected, "every role has reloaded")
        assert all("completion.quiet_s" in event["keys"] for event in node.events("configuration reloaded"))
        assert all(event["keys"] == ["receiver.processes"] for event in node.events("these keys need a restart"))
        assert node.events("these keys need a restart")
        assert storescu(node.port, files).returncode == 0
        node.wait_series(uid)


def test_sighup_with_a_mistake_changes_nothing(tmp_path: Path) -> None:
    with Node(tmp_path / "node") as node:
        node.configure(completion={"quiet_s": -1.0})
        assert node.process is not None
        node.process.send_signal(signal.SIGHUP)
        node.wait_for(lambda: node.events("configuration not reloaded"), "the mistake is logged")
        assert run_tool("echoscu", LOOPBACK, node.port).returncode == 0


def test_restart_inside_the_wait_keeps_the_deadline(tmp_path: Path) -> None:
    uid, files = small_series(tmp_path, 1)
    deadline = "SELECT deadline FROM revisions"
    with Node(tmp_path / "node", completion={"quiet_s": 8.0}) as node:
        assert storescu(node.port, files).returncode == 0
        node.wait_settled()
        before = node.query(deadline)
        assert len(before) == 1
        node.kill()
        node.start()
        assert node.query(deadline) == before
        series = node.wait_series(uid)
        assert (series.revision, series.verdict) == (1, "LIKELY")
        ((verdict_at,),) = node.query("SELECT verdict_at FROM revisions")
        assert verdict_at >= before[0][0]


# ------------------------------------------------------------------------------------------------ other doors


def test_watched_folder_takes_files_and_zips_and_rejects_the_rest(tmp_path: Path) -> None:
    first, files = small_series(tmp_path, 1)
    second, zipped = small_series(tmp_path, 2)
    inbox = tmp_path / "inbox"
    with Node(tmp_path / "node", inbox={"path": str(inbox), "settle_s": 0.2}) as node:
        for file in files:
            (inbox / file.name).write_bytes(file.read_bytes())
        with zipfile.ZipFile(inbox / "study.zip", "w") as archive:
            for file in zipped:
                archive.write(file, f"deep/{file.name}")
        (inbox / "junk.bin").write_bytes(b"this is no image" * 100)
        assert node.wait_series(first, instances=len(files)).instances == len(files)
        assert node.wait_series(second, instances=len(zipped)).instances == len(zipped)
        node.wait_for(lambda: [path.name for path in inbox.iterdir()] == ["rejected"], "the folder is empty")
        rejected = sorted(path.name for path in (inbox / "rejected").iterdir())
        assert len(rejected) == 2
        assert rejected[0].endswith("junk.bin")
        assert (inbox / "rejected" / rejected[1]).read_text().strip(), "a reason in words"
        node.wait_settled()
        node.check_promises(dict(map(sop_and_digest, [*files, *zipped])))


def test_import_brings_files_in_and_leaves_them_where_they_are(tmp_path: Path) -> None:
    uid, files = small_series(tmp_path, 1)
    with Node(tmp_path / "node") as node:
        node.command("import", files[0].parent)
        assert node.wait_series(uid, instances=len(files)).verdict == "LIKELY"
        node.wait_settled()
        node.check_promises(dict(map(sop_and_digest, files)))
        assert all(file.exists() for file in files)


# ----------------------------------------------------------------------------------------------------- limits


def test_limit_of_time_is_named_and_a_dead_job_can_be_retried(tmp_path: Path) -> None:
    uid, files = small_series(tmp_path, 1, slices=4)
    with Node(tmp_path / "node", worker={"timeout_s": 0.1}) as node:
        assert storescu(node.port, files).returncode == 0
        series = node.wait_series(uid, "FAILED")
        assert "0.1 s (worker.timeout_s)" in series.reason
        (job,) = node.json("jobs", "list", "--state", "DEAD")
        assert (job["failures"], job["series"]) == (3, uid)
        assert any("dead jobs" in finding for finding in node.findings())

        node.configure(worker={"timeout_s": 600.0})
        assert node.process is not None
        node.process.send_signal(signal.SIGHUP)
        node.wait_for(
            lambda: any(event["role"] == "work" for event in node.events("configuration reloaded")),
            "the worker has reloaded",
        )
        node.command("jobs", "retry", job["id"])
        node.wait_series(uid)
        assert node.findings() == []


def test_limit_of_memory_is_named(tmp_path: Path) -> None:
    files = philips_chest()
    uid = series_of(files[0])
    with Node(tmp_path / "node", worker={"memory_mb": 256}, pipeline={"spacing_mm": 0.7}) as node:
        assert storescu(node.port, files).returncode == 0
        node.wait_for(
            lambda: node.query("SELECT 1 FROM jobs WHERE failures > 0 AND message LIKE '%256 MB%worker.memory_mb%'"),
            "the limit is named",
        )
        assert node.series(uid).state in {"QUEUED", "PROCESSING", "FAILED"}  # type: ignore[union-attr]


# ------------------------------------------------------------------------------------------------ quarantine


def test_corrupt_file_of_the_journal_hurts_only_itself(tmp_path: Path) -> None:
    uid, files = small_series(tmp_path, 1)
    with Node(tmp_path / "node", completion={"quiet_s": 0.5, "max_wait_s": 4.0}) as node:
        (keeper,) = node.roles()["keep"]
        os.kill(keeper, signal.SIGSTOP)
        assert [answer.status for answer in send_as_is(node.port, files)] == [SUCCESS] * len(files)
        node.kill()
        waiting = sorted(node.layout.incoming.glob("*/*.dcm"))
        assert len(waiting) == len(files)
        os.truncate(waiting[5], 300)
        node.start()
        node.wait_series(uid)
        assert node.wait_series(uid).instances == len(files) - 1
        node.wait_settled()
        ((path, state, reason),) = node.query("SELECT path, state, reason FROM quarantine")
        assert (Path(path).is_file(), state) == (True, "FAILED")
        assert reason
        assert any("quarantine" in finding for finding in node.findings())
        node.check_promises(dict(map(sop_and_digest, [*files[:5], *files[6:]])))


# -------------------------------------------------------------------------------------- backup and rebuilding


def _instances(node: Node) -> set[tuple[object, ...]]:
    return set(node.query("SELECT sop_instance, transfer_syntax, digest, path, bytes FROM instances"))


def test_backup_is_restored_with_what_came_after_it(tmp_path: Path) -> None:
    first, files = small_series(tmp_path, 1)
    second, later = small_series(tmp_path, 2)
    copy = tmp_path / "copy.db"
    with Node(tmp_path / "node") as node:
        assert storescu(node.port, files).returncode == 0
        node.wait_series(first)
        node.command("backup", copy)
        assert storescu(node.port, later).returncode == 0
        node.wait_series(second)
        node.wait_settled()
        instances = _instances(node)
        node.command("backup", copy, "--restore", expect=69)
        assert node.terminate() == 0
        node.layout.database.unlink()
        node.command("backup", copy, "--restore")
        assert _instances(node) == instances
        node.start()
        assert {node.series(uid).state for uid in (first, second)} == {"DONE"}  # type: ignore[union-attr]
        node.check_promises(dict(map(sop_and_digest, [*files, *later])))
        assert node.findings() == []


def test_rebuilt_index_says_what_the_files_say_and_starts_nothing(tmp_path: Path) -> None:
    done, files = small_series(tmp_path, 1)
    held, others = small_series(tmp_path, 2)
    with storescp(tmp_path / "pacs", title="PACS") as port:
        target = {"name": "pacs", "ae_title": "PACS", "host": LOOPBACK, "port": port}
        with Node(tmp_path / "node") as node:
            for uid, sent in ((done, files), (held, others)):
                assert storescu(node.port, sent).returncode == 0
                node.wait_series(uid)
            node.wait_settled()
            instances = _instances(node)
            node.command("rebuild-index", expect=69)
            folder = node.results(held)
            assert node.terminate() == 0

            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
            node.configure(targets=[target])
            node.command("rebuild-index")
            assert _instances(node) == instances
            assert (node.series(done).state, node.series(done).hold) == ("DONE", "")  # type: ignore[union-attr]
            assert (node.series(held).state, node.series(held).hold) == ("COMPLETE", "rebuilt")  # type: ignore[union-attr]

            node.start()
            # Something new makes keeper, worker and deliverer turn; what was rebuilt still waits.
            fresh, more = small_series(tmp_path, 3)
            assert storescu(node.port, more).returncode == 0
            node.wait_series(fresh)
            node.wait_for(lambda: [row[1] for row in node.deliveries(fresh)] == ["SENT"], "the new report is sent")
            assert node.series(held).state == "COMPLETE"  # type: ignore[union-attr]
            assert node.deliveries(done) == node.deliveries(held) == []
            assert len(list((tmp_path / "pacs").iterdir())) == 1
            assert len(node.query("SELECT 1 FROM jobs")) == 1

            node.command("series", "requeue", held)
            assert node.wait_series(held).hold == ""
            node.wait_settled()
            node.check_promises(dict(map(sop_and_digest, [*files, *others, *more])))
            assert node.findings() == []
