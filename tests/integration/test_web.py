"""The page, its actions and its API over a real index, without processes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from starlette.routing import Route

from ctnode.archive import jobs, outbox, rejections, revisions
from ctnode.archive.outbox import Parcel
from ctnode.ops import audit
from ctnode.web.api import api_routes
from ctnode.words import VolumeStatus
from tests.archive_root import CT, Image, stack
from tests.web_root import Site

pytestmark = pytest.mark.integration

HOSTILE = '"><script>x'
API = "/api/v1"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    target = {"name": "pacs", "ae_title": "PACS", "host": "127.0.0.1", "port": 1}
    made = Site(tmp_path, targets=[target])
    yield made
    made.close()


def timeline(site: Site) -> list[str]:
    return [str(row[0]) for row in site.root.rows("SELECT text FROM timeline WHERE kind = 'operator' ORDER BY id")]


def state(site: Site, series_id: int = 1) -> str:
    return str(revisions.newest(site.root.database, series_id).state)


# ---------------------------------------------------------------------------------------------------------- pages


def test_each_page_answers_while_nothing_is_there_and_while_much_is(site: Site) -> None:
    pages = ["/", "/series", "/jobs", "/deliveries", "/associations", "/problems", "/upload"]
    for page in pages:
        assert site.client.get(page).status_code == 200, page
    site.queue()
    site.publish()
    site.root.hold(*stack(2, series="1.2.3.2"))
    for page in [
        *pages,
        "/series/1",
        "/series/2",
        f"/associations/{site.root.one('SELECT max(name) FROM associations')}",
    ]:
        answer = site.client.get(page)
        assert answer.status_code == 200, page
        assert answer.headers["cache-control"] == "no-store"
        # The policy forbids both, so neither would work.
        assert not re.search(r"<script(?! src=)|\bstyle=|\bon\w+=", answer.text), page


def test_a_series_page_tells_its_whole_life_with_pictures_numbers_and_files(site: Site) -> None:
    site.queue()
    site.publish()
    page = site.client.get("/series/1").text
    for word in ("SENDER", "TILTED", "resampled along the tilt", "slices 3-5", "the pipeline is queued", "quiet"):
        assert word in page, word
    assert "2\N{NARROW NO-BREAK SPACE}345.7" in page
    assert "\N{MINUS SIGN}820.0" in page
    assert '<img loading="lazy" decoding="async" src="/series/1/r1/preview.png"' in page
    assert "&lt;b&gt;thin&lt;/b&gt;" in page
    picture = site.client.get("/series/1/r1/preview.png")
    assert picture.headers["content-type"] == "image/png"
    assert picture.headers["cache-control"] == "no-store"
    assert "sandbox" in picture.headers["content-security-policy"]
    assert site.client.get("/series/1/r1/ct.nii.gz").headers["content-disposition"].startswith("attachment")


def test_only_files_of_the_folder_are_handed_out(site: Site) -> None:
    site.queue()
    site.publish()
    names = ["%2e%2e%2f%2e%2e%2fctnode.db", "..%2Fct.json", "nothing.png", ".hidden", "preview.png%00", "a" * 5000]
    for name in names:
        assert site.client.get(f"/series/1/r1/{name}").status_code == 404, name


def test_what_is_not_there_is_said_without_repeating_what_was_asked(site: Site) -> None:
    for path in ("/series/7", "/series/99999999999999999999", "/associations/nobody", "/nowhere"):
        answer = site.client.get(f"{path}?{HOSTILE}")
        assert answer.status_code == 404, path
        assert "script>x" not in answer.text, path


def test_what_a_peer_wrote_stays_text(site: Site) -> None:
    site.root.hold(*stack(2, modality=HOSTILE[:8]), calling=HOSTILE, address=f"{HOSTILE}:1")
    name = site.root.one("SELECT name FROM associations")
    with site.root.database.immediate():
        revisions.set_hold(site.root.database, revisions.newest(site.root.database, 1), f"{HOSTILE}</b>")
    for page in ("/", "/series", "/series/1", "/associations", f"/associations/{name}", "/problems"):
        text = site.client.get(page).text
        assert "<script>x" not in text, page
        assert "&lt;script&gt;x" in text, page


def test_a_link_puts_no_words_into_the_page(site: Site) -> None:
    assert "call this number" not in site.client.get("/?said=call this number").text
    assert "revision 1 is queued" in site.client.get("/?said=revision 1 is queued").text


def test_problems_name_each_kind_with_what_to_do(site: Site) -> None:
    site.queue()
    site.publish(status=VolumeStatus.REFUSED)
    site.root.hold(*stack(3, series="1.2.3.2"))
    with site.root.database.immediate():
        site.root.database.execute("UPDATE revisions SET verdict = 'SUSPECT' WHERE series_id = 2")
    site.root.hold(Image("1.2.3.2.1", series="1.2.3.2", pixels=b"\5\6\7\x08"))
    revisions.hold(site.root.database, 2, "to look at")
    with site.root.database.immediate():
        outbox.post(site.root.database, 1, [Parcel("pacs", "report", "a/report.dcm", "0" * 64)])
        site.root.database.execute("UPDATE deliveries SET state = 'DEAD', status = 42752")
    site.root.index.quarantine(Path("/q/x.dcm"), "a", "no UIDs")
    turned = rejections.Rejections(site.root.layout.rejections)
    turned.add({"address": "10.9.8.7", "calling_ae": "STRANGER", "called_ae": "CTNODE", "reason": "calling AE unknown"})
    turned.flush()
    page = site.client.get("/problems").text
    for word in (
        "TILTED", "Suspect series", "Held series", "Flagged duplicates", "Deliveries given up", "A700H",
        "Files in quarantine", "no UIDs", "Refused peers", "STRANGER", "10.9.8.7", "The node",
    ):  # fmt: skip
        assert word in page, word
    told = site.client.get(f"{API}/problems").json()
    assert [one["code"] for one in told["refused"]] == ["TILTED"]
    assert [one["id"] for one in told["suspect"]] == [2]


def test_what_somebody_acknowledged_leaves_the_problems_until_something_new_is_wrong(site: Site) -> None:
    site.queue()
    site.publish(status=VolumeStatus.REFUSED)
    site.queue(3, series="1.2.3.2")
    database = site.root.database
    with database.immediate():
        outbox.post(database, 1, [Parcel("pacs", "report", "a/report.dcm", "0" * 64)])
        database.execute("UPDATE deliveries SET state = 'DEAD', status = 42752")
        database.execute("UPDATE revisions SET verdict = 'SUSPECT' WHERE series_id = 2")
        database.execute("UPDATE series SET flags = '[\"CONFLICT\"]' WHERE id = 2")
    for _ in range(jobs.MAX_FAILURES):
        database.execute("UPDATE jobs SET due_at = 0")
        database.connection.commit()
        lease = jobs.claim(database, "one")
        assert lease is not None
        jobs.fail(database, lease, "no memory")
    assert "2 things need somebody" in site.client.get("/").text
    page = site.client.get("/problems").text
    for word in ("Failed series", "Dead jobs", "Suspect series", "Volumes refused", "Flagged", "Deliveries given up"):
        assert word in page, word
    told = site.post("/act/series/2/acknowledge", reason="known gap", back="/problems").headers["location"]
    assert "revision 2 is acknowledged" not in told
    assert site.client.get(told).text.count("revision 1 is acknowledged") == 1
    headers = {"x-csrf-token": site.csrf()}
    assert site.client.post(f"{API}/series/1/acknowledge", headers=headers, json={"reason": "x"}).status_code == 200
    site.post("/act/deliveries/1/cancel")
    assert timeline(site)[:2] == [
        "acknowledged by local on the page: known gap",
        "acknowledged by local on the page: x",
    ]
    page = site.client.get("/problems").text
    assert "Nothing needs you" in page or re.findall(r"<h2>([^<]+)", page) == ["The node"], re.findall(r"<h2>", page)
    assert "things need somebody" not in site.client.get("/").text
    # It stays marked where it is looked for, and says so.
    assert "SUSPECT" in site.client.get(f"{API}/series?verdict=SUSPECT").text
    assert '<span class="tag">acknowledged</span>' in site.client.get("/series/2").text
    assert site.post("/act/series/2/acknowledge").status_code == 409
    # A run that fails once more is something new; so is an image that comes late.
    site.post("/act/series/2/requeue")
    assert "Suspect series" in site.client.get("/problems").text
    site.root.hold(Image("1.2.3.1.99", series="1.2.3.1"))
    assert site.post("/act/series/1/acknowledge").status_code == 409


def test_an_association_shows_which_contexts_were_refused_and_why(site: Site) -> None:
    site.root.hold(*stack(1))
    with site.root.database.immediate():
        site.root.database.execute(
            "UPDATE associations SET refused = ?, accepted = ?",
            (f'[["{CT}", "no transfer syntax in common"]]', f'[["{CT}", "1.2.840.10008.1.2.1"]]'),
        )
    page = site.client.get(f"/associations/{site.root.one('SELECT name FROM associations')}").text
    assert "CT Image Storage" in page
    assert "no transfer syntax in common" in page
    assert "Explicit VR Little Endian" in page


# -------------------------------------------------------------------------------------------------------- actions


def test_each_action_does_what_its_command_does_and_says_who(site: Site) -> None:
    site.root.hold(*stack(2))
    assert site.post("/act/series/1/hold", reason="wrong patient?", back="/series/1").status_code == 303
    assert site.root.one("SELECT hold FROM series") == "wrong patient?"
    site.post("/act/series/1/release")
    assert site.root.one("SELECT hold FROM series") == ""
    site.post("/act/series/1/complete")
    site.root.complete()
    with site.root.database.immediate():
        revisions.queue(site.root.database, revisions.newest(site.root.database, 1))
    site.post("/act/jobs/1/cancel")
    assert state(site) == "KEPT"
    site.post("/act/jobs/1/retry")
    assert state(site) == "QUEUED"
    site.publish()
    assert site.post("/act/series/1/requeue").status_code == 303
    assert state(site) == "QUEUED"
    assert timeline(site) == [
        f"{what} by local on the page"
        for what in ("held", "released", "told complete", "job 1 cancelled", "requeued", "requeued")
    ]


def test_deliveries_are_cancelled_and_tried_again(site: Site) -> None:
    site.queue()
    with site.root.database.immediate():
        outbox.post(site.root.database, 1, [Parcel("pacs", "report", "a/report.dcm", "0" * 64)])
    site.post("/act/deliveries/1/cancel", back="/deliveries")
    assert outbox.get(site.root.database, 1).state == "CANCELLED"
    site.post("/act/deliveries/1/retry")
    assert outbox.get(site.root.database, 1).state == "PENDING"
    assert timeline(site)[-1] == "report to pacs: tried again by local on the page"


def test_what_the_state_does_not_allow_is_refused_in_words(site: Site) -> None:
    site.queue()
    answer = site.post("/act/series/1/release")
    assert answer.status_code == 409
    assert "nothing holds this series" in answer.text
    assert site.post("/act/series/9/requeue").status_code == 404
    assert site.post("/act/series/1/explode").status_code == 404


def test_an_echo_that_fails_says_so(site: Site) -> None:
    answer = site.post("/echo/pacs")
    assert "does not answer" in answer.text
    assert site.post("/echo/nobody").status_code == 404


def test_an_upload_goes_through_the_front_door(site: Site) -> None:
    headers = {"x-csrf-token": site.csrf()}
    image = stack(1)[0].encode()
    answer = site.client.post(f"{API}/upload", content=image, headers=headers)
    assert answer.json() == {"imported": 1, "reasons": []}
    site.root.settle()
    assert site.root.rows("SELECT door, peer_address FROM associations") == [("upload", "file:upload")]
    assert site.root.one("SELECT count(*) FROM instances") == 1
    junk = site.client.post(f"{API}/upload", content=b"no DICOM at all", headers=headers).json()
    assert junk["imported"] == 0
    assert "upload:" in junk["reasons"][0]
    assert site.client.post(f"{API}/upload", content=b"", headers=headers).status_code == 400
    assert not list(site.root.layout.run.glob("upload-*"))


def test_files_of_a_form_are_taken_where_no_script_sends_them(site: Site) -> None:
    files = [("files", (f"{HOSTILE}{number}.dcm", image.encode())) for number, image in enumerate(stack(3))]
    files.append(("files", ("notes.txt", b"no DICOM at all")))
    answer = site.client.post("/upload", data={"csrf": site.csrf()}, files=files)
    assert answer.status_code == 200
    assert "3 images taken" in answer.text
    assert "upload-4:" in answer.text
    # What a file is called may be a name.
    assert "script&gt;x" not in answer.text
    assert "<script>x" not in answer.text
    site.root.settle()
    assert site.root.one("SELECT count(*) FROM instances") == 3
    assert [one["what"] for one in audit.read(site.config.root)] == ["upload"]
    assert not list(site.root.layout.run.glob("upload-*"))


def test_a_form_without_its_token_before_the_files_or_without_its_end_takes_nothing(site: Site) -> None:
    image, token = stack(1)[0].encode(), site.csrf()
    part = b'--b\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
    file, proof = part % (b"files", b'; filename="a"', image), part % (b"csrf", b"", token.encode())
    nothing = part % (b"files", b'; filename=""', b"")

    def post(body: bytes, kind: str = "multipart/form-data; boundary=b") -> int:
        return int(site.client.post("/upload", content=body, headers={"content-type": kind}).status_code)

    assert post(file + proof + b"--b--\r\n") == 403
    assert post(part % (b"csrf", b"", b"0" * 64) + file + b"--b--\r\n") == 403
    assert post(part % (b"csrf", b"", b"0" * 2000) + file + b"--b--\r\n") == 400
    assert post(proof + file) == 400
    assert post(proof + file[:-20]) == 400
    assert post(proof + nothing + b"--b--\r\n") == 400
    assert post(b"garbage") == 400
    assert post(proof, "text/plain") == post(proof, "multipart/form-data") == 403
    assert not list(site.root.layout.incoming.rglob("*.dcm"))
    assert post(proof + file + b"--b--\r\n") == 200
    assert len(list(site.root.layout.incoming.rglob("*.dcm"))) == 1


def test_an_upload_does_not_take_the_room_of_the_receiver(tmp_path: Path) -> None:
    site = Site(tmp_path, storage={"root": str(tmp_path / "node"), "reserve_mb": 1 << 30})
    answer = site.client.post(f"{API}/upload", content=b"x", headers={"x-csrf-token": site.csrf()})
    assert answer.status_code == 507
    assert "room" in answer.json()["error"]
    assert not list(site.root.layout.run.glob("upload-*"))
    site.close()


# ------------------------------------------------------------------------------------------------------------ API


def calls(site: Site) -> list[tuple[str, str]]:
    return sorted(
        (method, re.sub(r":int", "", route.path))
        for route in api_routes(site.node)
        if isinstance(route, Route) and route.path != f"{API}/openapi.json"
        for method in (route.methods or set()) - {"HEAD"}
    )


def test_the_description_names_exactly_the_routes(site: Site) -> None:
    described = site.client.get(f"{API}/openapi.json").json()
    assert described["openapi"].startswith("3.1")
    told = sorted((method.upper(), path) for path, methods in described["paths"].items() for method in methods)
    assert told == calls(site)
    for path, methods in described["paths"].items():
        for operation in methods.values():
            named = {one["name"] for one in operation["parameters"] if one["in"] == "path"}
            assert named == set(re.findall(r"{(\w+)}", path))


def test_answers_are_as_described(site: Site) -> None:
    site.queue()
    site.publish()
    site.root.hold(*stack(2, series="1.2.3.2"))
    with site.root.database.immediate():
        outbox.post(site.root.database, 1, [Parcel("pacs", "report", "a/report.dcm", "0" * 64)])
    values = {
        "series_id": "1",
        "number": "1",
        "revision": "1",
        "name": site.root.one("SELECT max(name) FROM associations"),
    }
    described = site.client.get(f"{API}/openapi.json").json()
    asked = 0
    for path, methods in described["paths"].items():
        content = methods.get("get", {}).get("responses", {}).get("200", {}).get("content", {})
        if "schema" in content.get("application/json", {}):
            answer = site.client.get(path.format(**values))
            assert answer.status_code == 200, path
            jsonschema.validate(answer.json(), content["application/json"]["schema"])
            asked += 1
    assert asked >= 9


def test_nothing_that_is_asked_breaks_a_list(site: Site) -> None:
    site.queue()
    browser = site.browser(raises=False)
    for query in ("before=x", "before=-1", "limit=0", "limit=99999999999999999999", "q=%00", "q=%F0"):
        for path in ("/series", f"{API}/series", "/deliveries", f"{API}/deliveries"):
            assert browser.get(f"{path}?{query}").status_code in {200, 400}, (path, query)


def test_no_call_of_the_description_ends_in_a_500_whatever_it_is_given(site: Site) -> None:
    site.queue()
    site.publish()
    browser = site.browser(raises=False)
    odd = ["1", "0", str(1 << 63), "-1", "%00", "..", "a" * 300, "%F0%9F%92%A3", "%22%3E%3Cscript%3E", "1%27--"]
    headers = {"x-csrf-token": site.csrf()}
    for path, methods in site.client.get(f"{API}/openapi.json").json()["paths"].items():
        for method, operation in methods.items():
            asked = [one["name"] for one in operation["parameters"] if one["in"] == "query"]
            for value in odd:
                query = "&".join(f"{name}={value}" for name in asked)
                place = re.sub(r"{\w+}", value, path)
                answer = browser.request(method, f"{place}?{query}", headers=headers, content=b"[1]")
                assert answer.status_code < 500, (method, place, query, answer.text)


def test_a_word_that_is_none_of_the_states_is_an_error_in_json(site: Site) -> None:
    answer = site.client.get(f"{API}/jobs?state=SLEEPING")
    assert answer.status_code == 400
    assert "QUEUED" in answer.json()["error"]


def test_readiness_names_what_fails(site: Site) -> None:
    answer = site.client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["failing"] == ["keep", "receive", "work", "deliver"]
    assert site.client.get("/livez").json() == {"status": "ok"}


def test_without_an_index_pages_say_so(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.close()
    for file in site.root.layout.root.glob("ctnode.db*"):
        file.unlink()
    answers: dict[str, Any] = {path: site.client.get(path) for path in ("/", f"{API}/series")}
    assert {one.status_code for one in answers.values()} == {503}
    assert "start the node once" in answers["/"].text


def test_metrics_are_those_of_the_command(site: Site) -> None:
    site.root.hold(*stack(3))
    answer = site.client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert 'ctnode_instances_total{door="network",peer="unknown"} 3.0' in answer.text, answer.text
