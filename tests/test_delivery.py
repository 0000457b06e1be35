"""Drafts into a PACS: exactly once in effect, whatever dies, lies or is down. Against a real Orthanc."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import drafts
import pytest
from fake_pacs import (
    committing_pacs,
    dimse_pacs,
    dripping_port,
    http_pacs,
    losing_proxy,
    reports_to,
    silent_port,
    stow,
)
from ledgers import default_kind, new_ledger_url, rows_in
from orthanc import free_port, orthanc
from pydicom import dcmread

import mla_med
from mla_med.documents.check import validator_errors
from mla_med.errors import LedgerError, OutputError, PacsError
from mla_med.ledger.failpoints import EXIT_CODE, NAMES
from mla_med.ledger.ledger import BREAKER_THRESHOLD, MAX_BACKOFF_S, Ledger
from mla_med.ledger.nouns import JobState, Kind, Outcome
from mla_med.ledger.tables import outbox
from mla_med.pacs.check import check_pacs
from mla_med.pacs.deliver import commit_documents, deliver, deliver_due
from mla_med.pacs.letter import complaints, difference, read_letter
from mla_med.pacs.run import make_peer
from mla_med.pacs.settings import Credentials, PacsSettings
from mla_med.pacs.web import WebPeer

SECRET = bytes(range(32))
ROOT = Path(__file__).parents[1]


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def ledger_url(tmp_path) -> str:
    return new_ledger_url(default_kind(), tmp_path)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(ledger_url, clock):
    made = Ledger.open(ledger_url, SECRET, clock)
    yield made
    made.close()


def web(url: str, timeout_s: float = 10.0) -> WebPeer:
    return WebPeer(PacsSettings(dicomweb_url=url, timeout_s=timeout_s), Credentials())


def dimse(port: int, called: str = "ORTHANC", timeout_s: float = 5.0, commitment: bool = False):
    settings = PacsSettings(
        protocol="dimse",
        host="127.0.0.1",
        port=port,
        called_ae_title=called,
        timeout_s=timeout_s,
        commitment=commitment,
    )
    return make_peer(settings, Credentials())


def commit(ledger: Ledger, number: int, text: str = "Nodule of ≥ 3 mm."):
    return commit_documents(ledger, [drafts.sr(number, text)], "pacs", validate="off")


def texts(content: bytes) -> list[str]:
    return [item.TextValue for item in walk(dcmread(io.BytesIO(content))) if item.get("ValueType") == "TEXT"]


def walk(item):
    yield item
    for child in item.get("ContentSequence", []):
        yield from walk(child)


# Exactly once


def test_r1_killed_at_every_failpoint_each_draft_arrives_once_with_the_committed_words(server, ledger_url):
    jobs = range(10)
    lines = [f"{number} {point}" for number in jobs for point in (*NAMES, "")]
    arguments = {"ledger_url": ledger_url, "key": SECRET.hex(), "pacs": {"dicomweb_url": server.dicomweb_url}}
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/delivery_worker.py"), json.dumps(arguments)],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    codes = list(map(int, done.stdout.split()))
    assert codes == ([EXIT_CODE] * len(NAMES) + [0]) * 10
    ledger = Ledger.open(ledger_url, SECRET)
    found = {read_letter(file).uid: file for file in server.files()}
    committed = {}
    for number in jobs:
        job = ledger.newest_job(drafts.study_uid(number))
        assert job.state is JobState.DELIVERED
        (entry,) = ledger.documents(job.id)
        content = ledger.content(entry.id)
        committed[read_letter(content).uid] = content
    ledger.close()
    lost = committed.keys() - found.keys()
    doubled = len(server.get("/instances")) - len(committed)
    mismatched = [
        uid for uid in committed.keys() & found.keys() if texts(found[uid]) != texts(committed[uid])
    ]
    print(
        f"R1: {len(jobs)} jobs, {codes.count(EXIT_CODE)} kills, {len(found)} instances, {len(lost)} lost, "
        f"{doubled} duplicates, {len(mismatched)} text mismatches"
    )
    assert (len(found), lost, doubled, mismatched) == (10, set(), 0, [])


def test_r2_500_concurrent_deliveries_of_5_drafts_are_5_instances(server, ledger_url):
    contents = [drafts.sr(number) for number in range(5)]
    barrier = threading.Barrier(20, timeout=60)

    def work(_: int) -> None:
        ledger, peer = Ledger.open(ledger_url, SECRET), web(server.dicomweb_url)
        barrier.wait()
        for _ in range(5):
            for content in contents:
                commit_documents(ledger, [content], "pacs", validate="off")
            deliver_due(ledger, peer, "pacs", workers=1)
        ledger.close()

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(work, range(20)))
    ledger = Ledger.open(ledger_url, SECRET)
    assert ledger.job_counts() == {"DELIVERED": 5}
    ledger.close()
    instances = len(server.get("/instances"))
    print(f"R2: 500 deliveries of 5 drafts by 20 threads, {instances} instances")
    assert instances == 5


def test_r2_the_same_bytes_sent_past_the_ledger_are_one_instance_too(server):
    letters = [read_letter(drafts.sr(number)) for number in range(5)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: web(server.dicomweb_url).store(letters), range(20)))
    assert {outcome.kind for outcomes in found for outcome in outcomes} == {Kind.DELIVERED}
    assert len(server.get("/instances")) == 5


def test_r3_no_changed_bytes_are_sent_under_a_used_uid(server, ledger):
    commit(ledger, 1)
    changed = drafts.sr_dataset(1, "Nodule of ≥ 3 mm.")
    changed.SoftwareVersions = "0.2"
    with pytest.raises(LedgerError) as caught:
        commit_documents(ledger, [drafts.to_bytes(changed)], "pacs", validate="off")
    assert caught.value.code == "UID_USED"
    deliver_due(ledger, web(server.dicomweb_url), "pacs", workers=1)
    (file,) = server.files()
    assert dcmread(io.BytesIO(file)).SoftwareVersions == "0.1"
    print("R3: 1 changed document under a used UID, refused; 0 sent")


def test_r3_other_content_under_our_uid_is_parked_and_left_as_it_is(server, ledger):
    other = drafts.sr_dataset(1, "Nodule of ≥ 3 mm.")
    next(i for i in walk(other) if i.get("TextValue") == "Nodule of ≥ 3 mm.").TextValue = "No nodule."
    server.upload(drafts.to_bytes(other))
    job = commit(ledger, 1)
    deliver_due(ledger, web(server.dicomweb_url), "pacs", workers=1)
    parked = ledger.job(job.id)
    assert (parked.state, parked.reason) == (JobState.PARKED, "CONTENT_DIFFERS")
    (file,) = server.files()
    assert "No nodule." in texts(file)


def test_r6_an_answer_that_is_lost_after_the_store_makes_no_second_instance(server, ledger, clock):
    job = commit(ledger, 1)
    posts = []
    with losing_proxy(
        server.dicomweb_url, lambda method: method == "POST" and not posts.append(method)
    ) as url:
        assert deliver_due(ledger, web(url), "pacs", workers=1) == {Kind.UNKNOWN: 1}
        assert len(server.get("/instances")) == 1
        clock.now += 60
        assert deliver_due(ledger, web(url), "pacs", workers=1) == {Kind.DELIVERED: 1}
    assert ledger.job(job.id).state is JobState.DELIVERED
    assert len(server.get("/instances")) == 1
    assert len(posts) == 1  # it was looked for, and not sent again
    print("R6: 1 answer lost, 1 instance, 1 send")


def test_r6_what_was_stored_by_a_pacs_that_was_gone_before_it_was_read_back_may_be_there(network, ledger):
    letter = read_letter(drafts.sr(1))
    job = commit(ledger, 1)

    class Gone(WebPeer):
        def fetch(self, letters):
            return web(f"http://127.0.0.1:{free_port()}").fetch(letters)

    with http_pacs(lambda *_: (200, stow([letter.uid]))) as url:
        peer = Gone(PacsSettings(dicomweb_url=url), Credentials())
        assert deliver_due(ledger, peer, "pacs", workers=1) == {Kind.UNKNOWN: 1}
    assert [entry.reason for entry in ledger.documents(job.id)] == ["READ_CONNECT"]
    later = ledger.see(letter.study_uid, 99)
    assert ledger.predecessors(later.id) == (letter.uid,)  # a revision names it


def test_r6_what_was_never_sent_is_not_there_however_often_it_was_looked_for(network, ledger, clock):
    letter = read_letter(drafts.sr(1))
    commit(ledger, 1)
    for _ in range(3):
        assert deliver_due(ledger, web(f"http://127.0.0.1:{free_port()}"), "pacs", workers=1)
        clock.now = ledger.next_due_s("pacs")
    assert ledger.predecessors(ledger.see(letter.study_uid, 99).id) == ()


def test_a_batch_is_nobody_elses_for_as_long_as_it_may_take_to_be_read_back(ledger, clock):
    class SlowPeer:
        """Needs 20 s for each answer, of the 30 s that it has."""

        commits = False
        others: list[int] = []

        def store(self, letters):
            self.there = {letter.uid: letter.content for letter in letters}
            return [Outcome(Kind.DELIVERED)] * len(letters)

        def fetch(self, letters):
            clock.now += 20 * len(letters)
            self.others.append(len(ledger.lease("pacs", "another process", 20)))
            return [self.there.get(letter.uid) for letter in letters]

        def confirm(self, letters):
            return [Outcome(Kind.DELIVERED)] * len(letters)

    for number in range(20):
        commit(ledger, number)
    peer = SlowPeer()
    assert deliver_due(ledger, peer, "pacs", workers=1, timeout_s=30.0) == {Kind.DELIVERED: 20}
    assert peer.others == [0]


def test_a_document_that_cannot_be_validated_for_want_of_space_is_one_line(ledger, tmp_path, monkeypatch):
    (tmp_path / "dciodvfy").write_text("#!/bin/sh\n")
    (tmp_path / "dciodvfy").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    content = drafts.sr(1)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "full"))
    with pytest.raises(OutputError, match="Is there space"):
        commit_documents(ledger, [content], "pacs", validate="warn")
    assert ledger.list_jobs() == ()


# A PACS that is down, full, slow, or says what is not so


def test_r4_a_pacs_that_was_down_for_an_hour_gets_everything_within_one_backoff(network, ledger, clock):
    with orthanc() as server:
        peer = web(server.dicomweb_url)
        server.stop()
        for number in range(12):
            commit(ledger, number)
        back = clock.now + 3600
        tried = Counter()
        while clock.now < back:
            tried += deliver_due(ledger, peer, "pacs", workers=1, batch=5)
            clock.now = max(clock.now + 1, min(back, ledger.next_due_s("pacs")))
        server.start()
        while (due := ledger.next_due_s("pacs")) is not None:
            clock.now = max(clock.now, due)
            tried += deliver_due(ledger, peer, "pacs", workers=1, batch=5)
        assert ledger.job_counts() == {"DELIVERED": 12}
        assert len(server.get("/instances")) == 12
        waited = clock.now - back
        print(
            f"R4: down for 3600 s, 12 of 12 delivered {waited:.0f} s after its return, "
            f"{tried[Kind.TRANSIENT]} failed tries, no human act"
        )
        assert waited <= MAX_BACKOFF_S


STATUSES = [
    (0xA700, Kind.TRANSIENT, "DIMSE_A700"),
    (0xA900, Kind.PERMANENT, "DIMSE_A900"),
    (0xC000, Kind.PERMANENT, "DIMSE_C000"),
    (0x0124, Kind.PERMANENT, "DIMSE_0124"),
    (0x0122, Kind.PERMANENT, "DIMSE_0122"),
    (0x0110, Kind.TRANSIENT, "DIMSE_0110"),
    (0xB000, Kind.DELIVERED, ""),
    ("other class", Kind.PERMANENT, "CLASS_NOT_ACCEPTED"),
    ("abort", Kind.UNKNOWN, "NO_STATUS"),
    ("slow", Kind.UNKNOWN, "NO_STATUS"),
]


@pytest.mark.parametrize(("status", "kind", "reason"), STATUSES)
def test_r5_each_status_of_a_store_is_in_its_class(network, status, kind, reason):
    with dimse_pacs(status) as port:
        start = time.monotonic()
        (outcome,) = dimse(port, "FAKE", timeout_s=1).store([read_letter(drafts.sr(1))])
        seconds = time.monotonic() - start
    assert outcome == Outcome(kind, reason)
    assert seconds < 1 + 5
    print(f"R5: {status if isinstance(status, str) else f'{status:04X}'} is {kind}, {seconds:.1f} s")


UID = read_letter(drafts.sr(1)).uid
ANSWERS = [
    ((503, b""), Kind.TRANSIENT, "HTTP_503"),
    ((429, b""), Kind.TRANSIENT, "HTTP_429"),
    ((507, b""), Kind.TRANSIENT, "HTTP_507"),
    ((400, b"<html>"), Kind.PERMANENT, "HTTP_400"),
    ((401, b""), Kind.DENIED, "CREDENTIALS_REFUSED"),
    ((403, b""), Kind.DENIED, "ACCESS_DENIED"),
    ((404, b""), Kind.PERMANENT, "HTTP_404"),
    ((409, stow(failed={UID: 0xA700})), Kind.TRANSIENT, "DIMSE_A700"),
    ((409, stow(failed={UID: 0xA900})), Kind.PERMANENT, "DIMSE_A900"),
    ((202, stow(failed={UID: 0x0110})), Kind.TRANSIENT, "DIMSE_0110"),
    ((200, stow(referenced=[UID], failed={UID: 0xA700})), Kind.TRANSIENT, "DIMSE_A700"),
    ((200, stow(referenced=[UID])), Kind.DELIVERED, ""),
    ((200, stow(referenced=["1.2.3"])), Kind.UNKNOWN, "NOT_REFERENCED"),
    ((200, b"not json"), Kind.UNKNOWN, "NOT_REFERENCED"),
    ((200, b"[1, 2]"), Kind.UNKNOWN, "NOT_REFERENCED"),
    ((302, b""), Kind.PERMANENT, "HTTP_302"),
    (None, Kind.UNKNOWN, "CONNECTION_LOST"),
]


@pytest.mark.parametrize(("answer", "kind", "reason"), ANSWERS)
def test_r5_each_answer_of_a_stow_is_in_its_class(network, answer, kind, reason):
    with http_pacs(lambda method, path, body: answer) as url:
        (outcome,) = web(url, timeout_s=1).store([read_letter(drafts.sr(1))])
    assert outcome == Outcome(kind, reason)


@pytest.mark.parametrize(
    "make", [lambda port: web(f"http://127.0.0.1:{port}", 1), lambda port: dimse(port, "X", 1)]
)
def test_r5_a_port_that_says_nothing_holds_no_thread(network, make):
    with silent_port() as port:
        start = time.monotonic()
        (outcome,) = make(port).store([read_letter(drafts.sr(1))])
        seconds = time.monotonic() - start
    assert outcome.kind in (Kind.UNKNOWN, Kind.TRANSIENT)
    assert seconds < 1 + 5
    print(f"R5: silent port is {outcome.kind} ({outcome.reason}) after {seconds:.1f} s")


def test_r5_a_pacs_that_says_a_byte_now_and_then_holds_no_thread(network):
    letter = read_letter(drafts.sr(1))
    with dripping_port() as port:
        peer, start = web(f"http://127.0.0.1:{port}", timeout_s=0.5), time.monotonic()
        with pytest.raises(PacsError) as caught:
            peer.echo()
        found = [*peer.store([letter]), *peer.fetch([letter])]
        seconds = time.monotonic() - start
    assert caught.value.code == "TIMEOUT"
    assert found == [Outcome(Kind.UNKNOWN, "TIMEOUT"), Outcome(Kind.UNKNOWN, "TIMEOUT")]
    assert seconds < 3 * (0.5 + 1)
    print(f"R5: a dripping port, asked three times with 0.5 s each: {seconds:.1f} s")


@pytest.mark.parametrize("kind", ["application/dicom", "multipart/related; boundary=b"])
def test_r5_a_series_that_comes_a_byte_now_and_then_holds_no_thread(network, kind):
    with dripping_port(kind) as port:
        peer, start = web(f"http://127.0.0.1:{port}", timeout_s=0.5), time.monotonic()
        with pytest.raises(PacsError) as caught:
            peer.retrieve("1.2.3", "1.2.3.4", lambda content: None)
        seconds = time.monotonic() - start
    assert caught.value.code == "TIMEOUT"
    assert seconds < 0.5 + 1


def test_r5_a_disk_that_is_slow_is_not_the_pacs(server):
    letter, kept = read_letter(drafts.sr(1)), []
    web(server.dicomweb_url).store([letter])

    def write(content: bytes) -> None:
        time.sleep(0.8)
        kept.append(content)

    web(server.dicomweb_url, timeout_s=0.5).retrieve(letter.study_uid, letter.series_uid, write)
    assert len(kept) == 1


@pytest.mark.parametrize(
    "make", [lambda port: web(f"http://127.0.0.1:{port}", 1), lambda port: dimse(port, "X", 1)]
)
def test_r5_a_port_that_is_closed_was_sent_nothing(network, make):
    (outcome,) = make(free_port()).store([read_letter(drafts.sr(1))])
    assert outcome == Outcome(Kind.TRANSIENT, "CONNECT")


def test_r7_a_success_that_names_nothing_as_stored_is_not_stored(network, ledger):
    job = commit(ledger, 1)
    gone = (404, b"")
    with http_pacs(lambda method, path, body: (200, b"{}") if method == "POST" else gone) as url:
        tally = deliver_due(ledger, web(url), "pacs", workers=1)
    (entry,) = ledger.documents(job.id)
    assert (tally, entry.state, entry.reason) == ({Kind.UNKNOWN: 1}, "PENDING", "NOT_REFERENCED")
    print("R7: STOW 200 with empty sequences: 1 counted as not stored, 0 as stored")


def test_r7_what_is_referenced_and_cannot_be_read_back_is_not_delivered(network, ledger):
    job = commit(ledger, 1)
    uid = read_letter(drafts.sr(1)).uid
    with http_pacs(lambda m, path, body: (200, stow([uid])) if m == "POST" else (404, b"")) as url:
        deliver_due(ledger, web(url), "pacs", workers=1)
    (entry,) = ledger.documents(job.id)
    assert (entry.state, entry.reason) == ("PENDING", "NOT_FOUND")


def test_one_document_that_the_pacs_cannot_take_does_not_park_its_neighbours(network, ledger):
    jobs = [commit(ledger, number) for number in range(4)]
    letters = {read_letter(drafts.sr(n)).uid.encode(): drafts.sr(n) for n in range(4)}
    bad = read_letter(drafts.sr(2)).uid.encode()

    def answer(method: str, path: str, body: bytes):
        if method == "GET":
            (uid,) = (u for u in letters if path.endswith(u.decode()))
            part = b"\r\n--x\r\nContent-Type: application/dicom\r\n\r\n" + letters[uid] + b"\r\n--x--"
            return 200, part
        if bad in body:
            return 400, b""
        return 200, stow([uid.decode() for uid in letters if uid in body])

    with http_pacs(answer) as url:
        outcomes = web(url).store([read_letter(c) for c in letters.values()])
    assert [o.kind for o in outcomes].count(Kind.DELIVERED) == 3
    assert [o.reason for o in outcomes if o.kind is Kind.PERMANENT] == ["HTTP_400"]
    assert len(jobs) == 4


def fill(path: Path) -> None:
    """Until its disk is full."""
    ballast = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        while True:
            os.write(ballast, bytes(4096))
    except OSError:
        os.close(ballast)


def test_r9_a_pacs_whose_disk_is_full_loses_nothing_and_gets_it_later(network, ledger, clock, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], check=True)
    try:
        with orthanc(StorageDirectory=str(disk)) as server:
            fill(disk / "ballast")
            jobs = [commit(ledger, number) for number in range(4)]
            peer = web(server.dicomweb_url)
            full = deliver_due(ledger, peer, "pacs", workers=1, batch=2)
            assert full[Kind.DELIVERED] == 0
            assert {ledger.job(job.id).state for job in jobs} == {JobState.DRAFTED}
            (disk / "ballast").unlink()
            while (due := ledger.next_due_s("pacs")) is not None:
                clock.now = max(clock.now + 1, due)
                deliver_due(ledger, peer, "pacs", workers=1, batch=2)
            assert ledger.job_counts() == {"DELIVERED": 4}
            assert len(server.get("/instances")) == 4
            reasons = Counter(
                e.reason for j in jobs for e in ledger.history(j.id) if e.event in ("TRANSIENT", "UNKNOWN")
            )
            print(f"R9: full PACS, 4 drafts, 0 counted as stored ({dict(reasons)}), then 4 of 4 delivered")
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


# Not let in


def test_a_wrong_password_parks_nothing_and_what_waited_goes_out_when_it_is_mended(
    network, ledger, clock, caplog
):
    with orthanc(user=("mla", "right")) as server:

        def peer(password: str) -> WebPeer:
            settings = PacsSettings(dicomweb_url=server.dicomweb_url)
            return WebPeer(settings, Credentials("mla", password))

        jobs = [commit(ledger, number) for number in range(8)]
        tried = Counter()
        with caplog.at_level("ERROR", "mla_med.events"):
            for _ in range(4):
                tried += deliver_due(ledger, peer("expired"), "pacs", workers=1, batch=5)
                clock.now = ledger.next_due_s("pacs")
        assert tried == {Kind.DENIED: 5 + 1 + 1 + 1}  # one batch, and then one document at a time
        assert [record.mla_med_values["code"] for record in caplog.records] == ["CREDENTIALS_REFUSED"]
        assert {ledger.job(job.id).state for job in jobs} == {JobState.DRAFTED}
        clock.now += 80 * 3600  # longer than the deadline
        assert deliver_due(ledger, peer("right"), "pacs", workers=1, batch=5) == {Kind.DELIVERED: 8}
        assert len(server.get("/instances")) == 8
        assert ledger.denied("pacs") == ""
        print(
            f"401: 8 drafts, {tried[Kind.DENIED]} refused tries, 0 parked, 1 ERROR; 8 delivered when mended"
        )


def test_one_study_that_may_not_be_stored_keeps_no_other_from_it(network):
    letters = [read_letter(drafts.sr(number)) for number in range(3)]

    def answer(method: str, path: str, body: bytes):
        if letters[1].uid.encode() in body:
            return 403, b""
        return 200, stow([one.uid for one in letters if one.uid.encode() in body])

    with http_pacs(answer) as url:
        outcomes = web(url).store(letters)
    assert [o.reason for o in outcomes] == ["", "ACCESS_DENIED", ""]


def test_what_may_be_stored_and_not_read_is_not_delivered_and_not_parked(network, ledger):
    job = commit(ledger, 1)
    with http_pacs(lambda m, path, body: (200, stow([UID])) if m == "POST" else (403, b"")) as url:
        assert deliver_due(ledger, web(url), "pacs", workers=1) == {Kind.DENIED: 1}
    (entry,) = ledger.documents(job.id)
    assert (entry.state, entry.reason, ledger.denied("pacs")) == ("PENDING", *["READ_ACCESS_DENIED"] * 2)


def test_a_damaged_document_is_parked_and_its_neighbours_are_delivered(server, ledger):
    jobs = [commit(ledger, number) for number in range(3)]
    (entry,) = ledger.documents(jobs[1].id)
    with ledger._engine.begin() as c:
        c.execute(outbox.update().where(outbox.c.id == entry.id).values(sealed=bytes(200)))
    assert deliver_due(ledger, web(server.dicomweb_url), "pacs", workers=1) == {Kind.DELIVERED: 2}
    assert (ledger.job(jobs[1].id).state, ledger.job(jobs[1].id).reason) == ("PARKED", "BYTES_DAMAGED")
    assert len(server.get("/instances")) == 2


# DIMSE


def test_drafts_go_by_c_store_and_are_read_back_by_c_get(server, ledger):
    jobs = [commit(ledger, number) for number in range(3)]
    tally = deliver_due(ledger, dimse(server.dicom_port), "pacs", workers=1)
    assert tally == {Kind.DELIVERED: 3}
    assert {ledger.job(job.id).state for job in jobs} == {JobState.DELIVERED}
    assert {"Nodule of ≥ 3 mm."} <= set(texts(server.files()[0]))


def test_changed_text_that_a_c_store_answers_with_success_is_found_and_parked(server, ledger):
    other = drafts.sr_dataset(1, "Nodule of ≥ 3 mm.")
    next(i for i in walk(other) if i.get("TextValue") == "Nodule of ≥ 3 mm.").TextValue = "No nodule."
    server.upload(drafts.to_bytes(other))
    job = commit(ledger, 1)
    deliver_due(ledger, dimse(server.dicom_port), "pacs", workers=1)
    assert ledger.job(job.id).reason == "CONTENT_DIFFERS"


def test_what_is_not_there_is_told_from_what_cannot_be_read(server):
    letter = read_letter(drafts.sr(77))
    assert dimse(server.dicom_port).fetch([letter]) == [None]
    assert web(server.dicomweb_url).fetch([letter]) == [None]
    (answer,) = dimse(free_port()).fetch([letter])
    assert answer == Outcome(Kind.UNKNOWN, "READ_CONNECT")


@pytest.mark.parametrize(
    ("commits", "reports", "reasons"),
    [
        (lambda uid: True, True, ["", ""]),
        (lambda uid: uid == UID, True, ["", "NOT_COMMITTED"]),
        (lambda uid: True, False, ["COMMITMENT_TIMEOUT"] * 2),
    ],
)
def test_what_is_not_committed_is_not_delivered_where_a_site_asks_for_commitment(
    network, commits, reports, reasons
):
    letters = [read_letter(drafts.sr(1)), read_letter(drafts.sr(2))]
    with committing_pacs(commits, reports) as port:
        peer = dimse(port, "FAKE", timeout_s=1, commitment=True)
        outcomes = peer.confirm(letters)
    assert [outcome.reason for outcome in outcomes] == reasons
    assert {o.kind for o in outcomes if o.reason} <= {Kind.UNKNOWN}


def test_commitment_is_not_asked_for_unless_a_site_wants_it(network):
    assert dimse(free_port()).confirm([read_letter(drafts.sr(1))]) == [Outcome(Kind.DELIVERED)]


def test_storage_commitment_of_a_real_orthanc_comes_on_an_association_that_nobody_here_takes(network):
    """Orthanc answers the request, and reports to the address that it knows for our AE title (PS3.4 J.3.3
    allows either association). Nothing of ours listens there, so nothing counts as committed."""
    letters = [read_letter(drafts.sr(number)) for number in range(3)]
    with reports_to("MLA_MED") as (port, reports):
        known = {"us": {"AET": "MLA_MED", "Host": "127.0.0.1", "Port": port, "AllowStorageCommitment": True}}
        with orthanc(DicomModalities=known) as server:
            peer = dimse(server.dicom_port, timeout_s=3, commitment=True)
            assert {o.kind for o in peer.store(letters[:2])} == {Kind.DELIVERED}
            outcomes = peer.confirm(letters)
            assert set(outcomes) == {Outcome(Kind.UNKNOWN, "COMMITMENT_TIMEOUT")}
            (report,) = reports
            *_, step = (s for s in check_pacs(peer) if not s.passed)
            assert (step.name, step.code) == ("commit the draft", "COMMITMENT_TIMEOUT")
    committed = {str(item.ReferencedSOPInstanceUID) for item in report.ReferencedSOPSequence}
    failed = {str(i.ReferencedSOPInstanceUID): i.FailureReason for i in report.FailedSOPSequence}
    print(f"Orthanc: {len(committed)} of 3 committed, on another association; 0 counted by us")
    assert committed == {letter.uid for letter in letters[:2]}
    assert failed == {letters[2].uid: 0x0112}


# The words


SCRIPTS = [
    *("≥ 3 mm", "≤ 5 mm ± 0.5 µm", "“left” – ‘right’ — …", "10 × 12 × 8 mm³", "H₂O, 18F‑FDG, Δ 3 %"),
    *("naïve coöperation", "Größe über Öl, Straße", "œsophage, façade", "Łódź źdźbło", "čeština žluťoučký"),
    *("ελληνικά", "русский язык ёж", "українська їжак", "עברית נקודה", "شريحة في الرئة", "فارسی گچپژ"),
    *("हिन्दी फेफड़ा", "ไทย ปอด", "右肺上叶结节，大小约 3 mm。", "右上葉に結節を認める", "오른쪽 폐 결절"),
    *("𠮷野家 𝛼 𝟛", "👍🏽 👨‍👩‍👧", "e\u0301 = é?", "a\\b^c=d", "tab\there", "line\nbreak", "line\r\nbreak"),
    *("  leading spaces", "quotes \" ' ` <b>&amp;</b>", "=cmd|' /C calc'!A0", "\\textbf{x} $1$ %"),
    *("\u200bzero width", "\u202eright to left\u202c", "\ufeffBOM", "½ ¼ °C ‰"),
]


def test_v3_200_strings_of_every_script_come_back_equal(server, ledger):
    strings = [f"{number}. {SCRIPTS[number % len(SCRIPTS)]}" for number in range(199)] + ["肺 ≥" * 16_384]
    sent = {}
    for number in range(10):
        mine = strings[number::10]
        draft = drafts.draft(number, "x")
        sentences = tuple(drafts.replace(draft.report.sentences[0], text=text) for text in mine)
        draft = drafts.replace(draft, report=drafts.replace(draft.report, sentences=sentences))
        content = drafts.to_bytes(drafts.sr_of(draft, number))
        sent[read_letter(content).uid] = mine
        commit_documents(ledger, [content], "pacs", validate="off")
    assert deliver_due(ledger, web(server.dicomweb_url), "pacs", workers=1) == {Kind.DELIVERED: 10}
    equal = sum(
        text in found
        for letter in map(read_letter, server.files())
        for found in [texts(letter.content)]
        for text in sent[letter.uid]
    )
    print(f"V3: {equal} of 200 strings equal after store and read-back")
    assert equal == 200


def test_a_text_that_the_pacs_changed_is_not_delivered(network):
    content = drafts.sr(1, "Nodule of ≥ 3 mm.")
    assert difference(content, content) == ""
    changed = dcmread(io.BytesIO(content))
    next(
        i for i in walk(changed) if i.get("TextValue") == "Nodule of ≥ 3 mm."
    ).TextValue = "Nodule of ? 3 mm."
    assert difference(content, drafts.to_bytes(changed)) == "CONTENT_DIFFERS"


@pytest.mark.parametrize(
    ("keyword", "value", "why"),
    [
        ("PatientName", "Other^Name", ""),
        ("StudyDescription", "As ordered", ""),
        ("InstitutionName", "Added by the PACS", ""),
        ("PatientID", "OTHER", "PATIENT_CHANGED"),
        ("AccessionNumber", "OTHER", "ACCESSION_CHANGED"),
        ("VerificationFlag", "VERIFIED", "CONTENT_DIFFERS"),
        ("PreliminaryFlag", "FINAL", "CONTENT_DIFFERS"),
    ],
)
def test_a_pacs_may_describe_the_patient_anew_and_nothing_else(keyword, value, why):
    content = drafts.sr(1)
    changed = dcmread(io.BytesIO(content))
    setattr(changed, keyword, value)
    assert difference(content, drafts.to_bytes(changed)) == why


# What may leave


def _item(dataset, code):
    return next(
        i for i in walk(dataset) if i.get("ConceptNameCodeSequence", [{}])[0].get("CodeValue") == code
    )


def _drop(code):
    def change(d):
        d.ContentSequence = [i for i in d.ContentSequence if i.ConceptNameCodeSequence[0].CodeValue != code]

    return change


def _observer_gone(d):
    for code in ("121005", "121012", "121013", "121014", "121015", "121016"):
        _drop(code)(d)


def _other_study(d):
    d.CurrentRequestedProcedureEvidenceSequence[0].StudyInstanceUID = "1.2.3.4"


def _cited_elsewhere(d):
    image = next(i for i in walk(d) if i.get("ValueType") == "IMAGE")
    image.ReferencedSOPSequence[0].ReferencedSOPInstanceUID = "1.2.3.4.5"


MUTANTS = {
    "verified": lambda d: setattr(d, "VerificationFlag", "VERIFIED"),
    "verifying observer": lambda d: setattr(d, "VerifyingObserverSequence", []),
    "not preliminary": lambda d: setattr(d, "PreliminaryFlag", "FINAL"),
    "preliminary flag missing": lambda d: delattr(d, "PreliminaryFlag"),
    "completion flag unknown": lambda d: setattr(d, "CompletionFlag", "DONE"),
    "verification flag missing": lambda d: delattr(d, "VerificationFlag"),
    "latin 1": lambda d: setattr(d, "SpecificCharacterSet", "ISO_IR 100"),
    "no observer": _observer_gone,
    "evidence of another study": _other_study,
    "evidence missing": lambda d: delattr(d, "CurrentRequestedProcedureEvidenceSequence"),
    "cited image not in evidence": _cited_elsewhere,
    "no patient": lambda d: (setattr(d, "PatientID", ""), setattr(d, "PatientName", "")),
    "modality": lambda d: setattr(d, "Modality", "CT"),
    "root value type": lambda d: setattr(d, "ValueType", "TEXT"),
    "series number missing": lambda d: delattr(d, "SeriesNumber"),
    "study date not a date": lambda d: setattr(d, "StudyDate", "yesterday"),
    "content date missing": lambda d: delattr(d, "ContentDate"),
    "performed procedure codes missing": lambda d: delattr(d, "PerformedProcedureCodeSequence"),
}


def test_v2_every_broken_sr_is_caught(tmp_path):
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed (Debian: dicom3tools)")
    from mla_med.dicom.header import quiet_pydicom

    whole = drafts.sr(1)
    assert (complaints(whole), validator_errors(whole)) == ((), ())
    caught = {}
    for name, change in MUTANTS.items():
        with quiet_pydicom():
            mutant = dcmread(io.BytesIO(whole))
            change(mutant)
            content = drafts.to_bytes(mutant)
        caught[name] = bool(complaints(content)), bool(validator_errors(content))
    ours = sum(mine for mine, _ in caught.values())
    print(f"V2: {sum(map(any, caught.values()))} of {len(caught)} caught, {ours} by our checks alone")
    assert not [name for name, found in caught.items() if not any(found)]
    assert len(caught) == 18


def test_a_preamble_that_holds_another_format_is_not_sent(ledger):
    content = b"MZ" + bytes(126) + drafts.sr(1)[128:]
    with pytest.raises(PacsError) as caught:
        commit_documents(ledger, [content], "pacs", validate="off")
    assert caught.value.code == "PREAMBLE"
    assert ledger.list_jobs() == ()


def test_v1_dciodvfy_finds_no_error_in_what_is_stored(server, ledger):
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed (Debian: dicom3tools)")
    for number in range(3):
        commit(ledger, number)
    deliver_due(ledger, web(server.dicomweb_url), "pacs", workers=1)
    errors = [len(validator_errors(file)) for file in server.files()]
    print(f"V1: {len(errors)} stored SRs, {sum(errors)} dciodvfy errors")
    assert errors == [0, 0, 0]


def test_v4_no_code_can_write_what_only_a_person_may():
    package = Path(mla_med.__file__).parent
    files = [*package.glob("ledger/**/*.py"), *package.glob("pacs/**/*.py"), package / "cli_pacs.py"]
    assert len(files) > 15
    found = [
        p.name
        for p in files
        if re.search(r"(?<!UN)VERIFIED|FINAL\b", p.read_text().replace("NOT_UNVERIFIED", ""))
    ]
    print(f"V4: {len(files)} files, {len(found)} with VERIFIED or FINAL")
    assert found == []


# Nothing leaks


CANARIES = ("Canary^Patient", "CANARY-ID-77", "19330303", "CANARYACC")


def test_p1_no_identifier_in_any_log_row_or_file_name(server, tmp_path, ledger_url):
    script = f"""
import os, sys, threading, warnings
sys.path.insert(0, {str(ROOT / "tests")!r})
import drafts, highdicom, pydicom
from datetime import date
from mla_med.logs import start_logging
start_logging(level="debug")
from pathlib import Path
from mla_med.errors import MlaMedError
from mla_med.ledger.ledger import Ledger
from mla_med.pacs.deliver import commit_documents, deliver_due
from mla_med.pacs.run import make_peer
from mla_med.pacs.settings import Credentials, PacsSettings
import logging
patient = dict(PatientName="Canary^Patient", PatientID="CANARY-ID-77", PatientBirthDate="19330303",
               AccessionNumber="CANARYACC")
def peer(**more):
    return make_peer(PacsSettings(timeout_s=1, **more), Credentials("CANARYUSER", "CANARYPASSWORD"))
ledger = Ledger.open({ledger_url!r}, {SECRET!r})
good = peer(dicomweb_url={server.dicomweb_url!r})
down = peer(dicomweb_url="http://127.0.0.1:9/dicom-web")
wrong = peer(dicomweb_url={server.url!r} + "/nowhere")
by_dimse = peer(protocol="dimse", host="127.0.0.1", port={server.dicom_port}, called_ae_title="ORTHANC")
refused = peer(protocol="dimse", host="127.0.0.1", port=9, called_ae_title="ORTHANC")
for number, each in enumerate((good, down, wrong, by_dimse, refused)):
    commit_documents(ledger, [drafts.sr(number, **patient)], str(number), validate="warn")
    deliver_due(ledger, each, str(number), workers=1)
    try:
        each.find_studies(date(1900, 1, 1), ["SR"]); each.count(drafts.study_uid(0)); each.echo()
    except MlaMedError as error:
        print(error, error.code)
changed = drafts.sr_dataset(0, "other", **patient)
changed.SOPInstanceUID = changed.file_meta.MediaStorageSOPInstanceUID = pydicom.dcmread(
    __import__("io").BytesIO(drafts.sr(0, **patient))).SOPInstanceUID
changed = drafts.to_bytes(changed)
for broken in (b"", changed[:900], b"MZ" + changed[2:], changed):
    try:
        commit_documents(ledger, [broken], "0", validate="off")
    except MlaMedError as error:
        print(error, error.code)
logging.getLogger("pydicom").warning("Canary^Patient")
logging.getLogger("pynetdicom").debug("CANARY-ID-77")
warnings.warn("Canary^Patient 19330303")
threading.Thread(target=lambda: int("CANARYACC")).start()
import time; time.sleep(0.2)
raise ValueError("CANARY-ID-77")
"""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", script], capture_output=True, cwd=tmp_path, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    printed = (done.stdout + done.stderr).decode()
    assert '"exception": "ValueError"' in printed, printed[-3000:]
    assert '"event": "tried"' in printed
    assert "pynetdicom" in printed
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    places = [
        printed.encode(),
        rows_in(ledger_url),
        *(p.read_bytes() for p in files),
        *(str(p).encode() for p in files),
    ]
    hits = [c for c in (*CANARIES, "CANARYUSER", "CANARYPASSWORD") for text in places if c.encode() in text]
    print(f"P1: {len(printed.splitlines())} lines at DEBUG, {len(files)} files, {len(hits)} hits")
    assert hits == []
    lines = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    assert {"tried", "committed", "library"} <= {line["event"] for line in lines}


# Metrics, rate


def test_metrics_say_what_is_waiting_and_what_was_tried(network, ledger, tmp_path):
    from mla_med.pacs.metrics import Metrics

    commit(ledger, 1)
    metrics = Metrics(ledger, "pacs")
    for _ in range(BREAKER_THRESHOLD):
        deliver_due(ledger, web("http://127.0.0.1:9"), "pacs", workers=1, observe=metrics.observe)
    metrics.write(tmp_path / "mla_med.prom")
    text = (tmp_path / "mla_med.prom").read_text()
    assert 'mla_med_documents{destination="pacs",state="PENDING"} 1.0' in text
    assert 'mla_med_tries_total{outcome="transient",reason="CONNECT"} 1.0' in text
    assert 'mla_med_jobs{state="DRAFTED"} 1.0' in text


def test_deliver_reads_back_only_what_was_said_to_be_stored(network, ledger):
    commit(ledger, 1)
    asked = []
    with http_pacs(lambda method, path, body: asked.append(method) or (503, b"")) as url:
        deliver(ledger.lease("pacs", "a"), web(url))
    assert asked == ["POST"]
