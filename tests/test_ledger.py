"""The ledger alone: what survives, what is refused, who may record."""

from __future__ import annotations

import os
import random
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from ledgers import new_ledger_url, stop_postgres

import mla_med.ledger as ledger_module
from mla_med.errors import ConfigError, LedgerError
from mla_med.ledger.database import make_engine
from mla_med.ledger.ledger import (
    BREAKER_THRESHOLD,
    DEADLINE_S,
    LEASE_S,
    MAX_BACKOFF_S,
    Ledger,
)
from mla_med.ledger.nouns import Document, DocumentState, JobState, Kind, Outcome
from mla_med.ledger.owners import is_dead, owner
from mla_med.ledger.rows import backoff_s
from mla_med.ledger.seal import SiteKey
from mla_med.ledger.tables import jobs, outbox

SECRET = bytes(range(32))
DELIVERED, TRANSIENT = Outcome(Kind.DELIVERED), Outcome(Kind.TRANSIENT, "CONNECT")


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module", autouse=True)
def _stop_postgres():
    yield
    stop_postgres()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path) -> str:
    return new_ledger_url(request.param, tmp_path)


@pytest.fixture
def ledger(url, clock):
    made = Ledger.open(url, SECRET, clock)
    yield made
    made.close()


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def document(number: int = 1, content: bytes = b"final bytes") -> Document:
    return Document("SR", f"1.2.{number}", content)


def commit(ledger: Ledger, number: int = 1, content: bytes = b"final bytes"):
    return ledger.commit(f"1.2.840.{number}", ["v1"], [document(number, content)], ["main"])


def states(ledger: Ledger, job_id: str) -> list[DocumentState]:
    return [entry.state for entry in ledger.documents(job_id)]


def test_the_same_work_committed_again_keeps_the_bytes_of_the_first_time(ledger):
    first = commit(ledger, content=b"a nodule")
    again = ledger.commit("1.2.840.1", ["v1"], [Document("SR", "9.9", b"one nodule")], ["main"])
    assert again.id == first.id
    (entry,) = ledger.documents(first.id)
    assert ledger.content(entry.id) == b"a nodule"


def test_changed_bytes_under_a_used_uid_are_refused_and_nothing_is_left_of_them(ledger):
    commit(ledger, content=b"a nodule")
    with pytest.raises(LedgerError) as caught:
        ledger.commit("1.2.840.1", ["v2"], [Document("SR", "1.2.1", b"no nodule")], ["main"])
    assert caught.value.code == "UID_USED"
    assert len(ledger.list_jobs()) == 1


def test_a_document_that_joins_later_is_sent_and_its_neighbour_not_again(ledger):
    first = ledger.commit("1.2.3", ["SR"], [document(1)], ["main"])
    ledger.record([(lease, DELIVERED) for lease in ledger.lease("main", "a")])
    later = ledger.commit("1.2.3", ["SR", "DOC"], [document(1), document(2)], ["main"])
    assert later.id != first.id
    assert [lease.uid for lease in ledger.lease("main", "a", 9)] == ["1.2.2"]


def test_the_very_same_bytes_again_are_the_job_they_belong_to(ledger):
    first = ledger.commit("1.2.3", ["v1"], [document(1)], ["main"])
    assert ledger.commit("1.2.3", ["v2"], [document(1)], ["main"]).id == first.id


def test_a_lease_is_for_one_owner_until_it_ends(ledger, clock):
    commit(ledger)
    (lease,) = ledger.lease("main", "a")
    assert (lease.attempt, lease.fence, lease.content, lease.uid) == (1, 1, b"final bytes", "1.2.1")
    assert ledger.lease("main", "b") == ()
    clock.now += LEASE_S + 1
    (later,) = ledger.lease("main", "b")
    assert (later.attempt, later.fence) == (2, 2)


def test_who_lost_its_lease_cannot_record(ledger, clock):
    job = commit(ledger)
    (old,) = ledger.lease("main", "a")
    clock.now += LEASE_S + 1
    (new,) = ledger.lease("main", "b")
    assert ledger.record([(old, Outcome(Kind.PERMANENT, "DIMSE_C000"))]) == (False,)
    assert states(ledger, job.id) == [DocumentState.SENDING]
    assert ledger.record([(new, DELIVERED)]) == (True,)
    assert ledger.job(job.id).state is JobState.DELIVERED
    assert "STALE_REFUSED" in [event.event for event in ledger.history(job.id)]


def test_r10_two_workers_lease_no_document_twice(url):
    ledger = Ledger.open(url, SECRET)
    for number in range(40):
        commit(ledger, number)
    barrier = threading.Barrier(4, timeout=60)

    def work(owner: int) -> list[str]:
        mine = Ledger.open(url, SECRET)
        barrier.wait()
        taken = []
        while leases := mine.lease("main", str(owner), 3):
            taken += [lease.document_id for lease in leases]
            mine.record([(lease, DELIVERED) for lease in leases])
        mine.close()
        return taken

    with ThreadPoolExecutor(4) as pool:
        taken = [d for found in pool.map(work, range(4)) for d in found]
    assert len(taken) == len(set(taken)) == 40
    assert ledger.job_counts() == {"DELIVERED": 40}
    ledger.close()
    print("R10: 4 workers, 40 documents, 40 leases, 0 doubled")


def test_workers_with_documents_of_the_same_jobs_do_not_wait_for_each_other_for_ever(url):
    ledger = Ledger.open(url, SECRET)
    for number in range(8):
        documents = [document(10 * number + k) for k in range(4)]
        ledger.commit(f"1.2.840.{number}", ["v1"], documents, ["main"])
    barrier = threading.Barrier(4, timeout=60)

    def work(owner: int) -> int:
        mine, done = Ledger.open(url, SECRET), 0
        barrier.wait()
        while leases := mine.lease("main", str(owner), 3):
            done += sum(mine.record([(lease, DELIVERED) for lease in reversed(leases)]))
        mine.close()
        return done

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(work, range(4))) == 32
    assert ledger.job_counts() == {"DELIVERED": 8}
    ledger.close()


def test_many_that_open_a_new_ledger_at_once_all_open_it(tmp_path):
    """Workers that start together on an empty machine: SQLite told one of them that it was locked."""
    for number in range(60):
        barrier = threading.Barrier(8, timeout=60)
        url = f"sqlite:///{tmp_path / str(number)}.db"

        def connect(_: int, url: str = url, barrier: threading.Barrier = barrier) -> str:
            engine = make_engine(url)
            barrier.wait()
            with engine.connect() as connection:
                mode = connection.exec_driver_sql("PRAGMA journal_mode").scalar()
            engine.dispose()
            return mode

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(connect, range(8))) == ["wal"] * 8


def test_opened_twice_in_a_process_it_keeps_what_is_written_after_another_process_leaves(tmp_path):
    """The second opening dropped the locks of the first, and who closed elsewhere took the log away."""
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    first, second = Ledger.open(url, SECRET), Ledger.open(url, SECRET)
    look = (
        "import sys; from mla_med.ledger.ledger import Ledger; "
        f"ledger = Ledger.open({url!r}, bytes(range(32))); print(dict(ledger.job_counts())); ledger.close()"
    )

    def seen_elsewhere() -> str:
        done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    seen_elsewhere()
    commit(first, 1)
    assert seen_elsewhere() == "{'DRAFTED': 1}"
    first.close(), second.close()


def test_the_same_work_committed_by_many_at_once_is_one_job(url):
    barrier = threading.Barrier(8, timeout=60)

    def work(number: int) -> str:
        mine = Ledger.open(url, SECRET)
        barrier.wait()
        document = Document("SR", f"1.2.{number}", b"worded %d" % number)
        job = mine.commit("1.2.840.1", ["v1"], [document], ["main"])
        mine.close()
        return job.id

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(work, range(8)))) == 1


def test_a_transient_failure_comes_again_after_a_longer_time(ledger, clock):
    job = commit(ledger)
    waits = []
    for _ in range(2):
        (lease,) = ledger.lease("main", "a")
        ledger.record([(lease, TRANSIENT)])
        (entry,) = ledger.documents(job.id)
        waits.append(entry.next_at_s - clock.now)
        assert ledger.lease("main", "a") == ()
        clock.now = entry.next_at_s
    assert 20 < waits[0] <= 30 < waits[1] <= 60
    assert entry.reason == "CONNECT"


def test_backoff_doubles_up_to_a_quarter_of_an_hour():
    random.seed(0)
    assert 22.5 <= backoff_s(1) <= 30
    assert all(0.75 * MAX_BACKOFF_S <= backoff_s(n) <= MAX_BACKOFF_S for n in (6, 20, 10_000))


def test_a_permanent_failure_parks_at_once_and_a_person_can_retry_it(ledger):
    job = commit(ledger)
    (lease,) = ledger.lease("main", "a")
    ledger.record([(lease, Outcome(Kind.PERMANENT, "DIMSE_A900"))])
    parked = ledger.job(job.id)
    assert (parked.state, parked.reason) == (JobState.PARKED, "DIMSE_A900")
    assert ledger.lease("main", "a") == ()
    assert ledger.retry(job.id).state is JobState.DRAFTED
    (lease,) = ledger.lease("main", "a")
    assert lease.attempt == 2  # it may have been stored: it is looked for first


def test_a_draft_of_half_a_study_that_was_parked_never_follows_that_of_the_whole(ledger):
    half = ledger.see("1.2.3", 4)
    ledger.ready(half.id, 4)
    ledger.commit("1.2.3", ["half"], [document(1)], ["main"], half.id)
    (lease,) = ledger.lease("main", "a")
    ledger.record([(lease, Outcome(Kind.PERMANENT, "DIMSE_C000"))])
    whole = ledger.see("1.2.3", 8)
    with pytest.raises(LedgerError, match="was revised") as caught:
        ledger.retry(half.id)
    assert caught.value.code == "STATE_WRONG"
    ledger.ready(whole.id, 8)
    ledger.commit("1.2.3", ["whole"], [document(2)], ["main"], whole.id, supersede=True, predecessors=())
    assert ledger.job(half.id).state is JobState.SUPERSEDED
    (lease,) = ledger.lease("main", "a")
    assert lease.uid == "1.2.2"


def test_a_document_is_parked_when_its_72_hours_are_over(tmp_path, clock):
    ledger = Ledger.open(f"sqlite:///{tmp_path}/ledger.db", SECRET, clock)
    job = commit(ledger)
    end = clock.now + DEADLINE_S
    tries = 0
    while clock.now < end + MAX_BACKOFF_S:
        for lease in ledger.lease("main", "a"):
            ledger.record([(lease, TRANSIENT)])
            tries += 1
        clock.now = ledger.next_due_s("main") or end + MAX_BACKOFF_S
    assert states(ledger, job.id) == [DocumentState.PARKED]
    assert ledger.job(job.id).state is JobState.PARKED
    assert 260 < tries < 400


def test_what_was_never_tried_gets_its_try_after_the_deadline(ledger, clock):
    commit(ledger)
    clock.now += DEADLINE_S + 1
    (lease,) = ledger.lease("main", "a")
    assert ledger.record([(lease, DELIVERED)]) == (True,)


def test_a_destination_that_fails_is_spared_and_probed_with_one_document(ledger, clock):
    for number in range(9):
        commit(ledger, number)
    for _ in range(BREAKER_THRESHOLD):
        ledger.record([(lease, TRANSIENT) for lease in ledger.lease("main", "a", 2)])
    assert ledger.is_open("main")
    assert ledger.lease("main", "a", 9) == ()
    clock.now += 31
    (probe,) = ledger.lease("main", "a", 9)
    assert ledger.lease("main", "b", 9) == ()  # one probe at a time
    ledger.record([(probe, DELIVERED)])
    assert not ledger.is_open("main")
    assert len(ledger.lease("main", "a", 9)) == 8  # those that waited for their backoff too


DENIED = Outcome(Kind.DENIED, "CREDENTIALS_REFUSED")


def test_a_destination_that_does_not_let_us_in_is_spared_at_once_and_parks_nothing(ledger, clock):
    ids = [commit(ledger, number).id for number in range(5)]
    ledger.record([(lease, DENIED) for lease in ledger.lease("main", "a", 3)])
    assert ledger.denied("main") == "CREDENTIALS_REFUSED"
    assert ledger.lease("main", "a", 9) == ()
    for wait_s in (30, 60, 120, 240, 480, 900, 900, DEADLINE_S, DEADLINE_S):  # a long weekend
        clock.now += min(wait_s, MAX_BACKOFF_S) - 1
        assert ledger.lease("main", "a", 9) == ()
        clock.now += wait_s
        (probe,) = ledger.lease("main", "a", 9)
        ledger.record([(probe, DENIED)])
    assert {ledger.job(job_id).state for job_id in ids} == {JobState.DRAFTED}
    clock.now += MAX_BACKOFF_S
    ledger.record([(lease, DELIVERED) for lease in ledger.lease("main", "a", 9)])
    assert ledger.denied("main") == ""
    leases = ledger.lease("main", "a", 9)  # those whose 72 hours were over meanwhile too
    assert len(leases) == 4
    ledger.record([(lease, TRANSIENT) for lease in leases])
    assert {ledger.job(job_id).state for job_id in ids} == {JobState.DRAFTED, JobState.DELIVERED}


def test_who_mended_the_password_need_not_wait_for_the_next_probe(ledger, clock):
    commit(ledger)
    for _ in range(5):
        clock.now = max(clock.now, ledger.next_due_s("main"))
        ledger.record([(lease, DENIED) for lease in ledger.lease("main", "a")])
    assert ledger.lease("main", "a") == ()
    assert ledger.ask_again() == ("main",)
    assert len(ledger.lease("main", "a")) == 1


def test_one_document_that_is_denied_while_others_are_stored_spares_nobody(ledger):
    commit(ledger, 1), commit(ledger, 2)
    first, second = ledger.lease("main", "a", 2)
    ledger.record([(first, DELIVERED), (second, Outcome(Kind.DENIED, "ACCESS_DENIED"))])
    assert (ledger.denied("main"), ledger.is_open("main")) == ("", False)


def test_one_document_that_is_denied_for_days_while_others_are_stored_is_parked(ledger, clock):
    """Whenever another was let in it had another 72 hours, and was asked for and denied for ever."""
    alone, denied = commit(ledger, 1).id, Outcome(Kind.DENIED, "ACCESS_DENIED")

    def days(number: int) -> str:
        for _ in range(number):
            clock.now += 86400
            other = commit(ledger, round(clock.now)).id
            while ledger.job(other).state != JobState.DELIVERED:
                for one in ledger.lease("main", "a", 1):
                    ledger.record([(one, denied if one.job_id == alone else DELIVERED)])
                clock.now += MAX_BACKOFF_S
        return ledger.job(alone).state

    assert days(3) == JobState.DRAFTED
    assert days(2) == JobState.PARKED
    assert ledger.job(alone).reason == "ACCESS_DENIED"
    ledger.retry(alone)
    assert days(3) == JobState.DRAFTED  # a person saw to it: from the beginning
    assert days(2) == JobState.PARKED


def test_one_more_refusal_after_days_without_entry_parks_nothing(ledger, clock):
    ids = [commit(ledger, number).id for number in range(4)]
    for _ in range(5):  # days
        clock.now += 86400
        ledger.record([(lease, DENIED) for lease in ledger.lease("main", "a", 9)])
    clock.now += 86400
    ledger.record([(lease, DELIVERED) for lease in ledger.lease("main", "a", 9)])  # the password was mended
    clock.now += 1
    refused = ledger.lease("main", "a", 9)
    assert len(refused) == 3
    ledger.record([(lease, DENIED) for lease in refused])
    assert Counter(ledger.job(job_id).state for job_id in ids) == {JobState.DRAFTED: 3, JobState.DELIVERED: 1}


def damage(ledger: Ledger, document_id: str, **values) -> None:
    """As a bad disk does: behind the ledger's back."""
    with ledger._engine.begin() as c:
        c.execute(outbox.update().where(outbox.c.id == document_id).values(**values))


DAMAGES = {
    "bytes changed": {"sealed": bytes(range(200))},
    "bytes cut off": {"sealed": b"short"},
    "bytes gone": {"sealed": None},
    "another digest": {"digest": "0" * 64},
}


@pytest.mark.parametrize("values", DAMAGES.values(), ids=DAMAGES)
def test_damaged_bytes_are_parked_unsent_and_stop_nobody(ledger, clock, values):
    bad = commit(ledger, 1)
    clock.now += 1
    good = commit(ledger, 2)
    (entry,) = ledger.documents(bad.id)
    damage(ledger, entry.id, **values)
    (lease,) = ledger.lease("main", "a", 1)  # the first in line is the damaged one
    assert lease.job_id == good.id
    ledger.record([(lease, DELIVERED)])
    assert ledger.lease("main", "a", 9) == ()
    parked = ledger.job(bad.id)
    assert (parked.state, parked.reason) == (JobState.PARKED, "BYTES_DAMAGED")
    (entry,) = ledger.documents(bad.id)
    assert (entry.state, entry.attempts) == ("PARKED", 0)
    ledger.retry(bad.id)
    assert ledger.lease("main", "a", 9) == ()  # whoever asks for it again: it is never sent
    assert ledger.job(bad.id).reason == "BYTES_DAMAGED"
    with pytest.raises(LedgerError, match=r"erased|not the committed ones"):
        ledger.content(entry.id)
    assert ledger.discard(bad.id, "DAMAGED").state is JobState.DISCARDED
    again = ledger.commit("1.2.840.1", ["v1"], [Document("SR", "1.2.9", b"drafted again")], ["main"])
    assert [lease.job_id for lease in ledger.lease("main", "a", 9)] == [again.id]


def test_damage_to_what_was_delivered_stops_neither_purge_nor_revision(ledger, clock):
    job = ledger.commit("1.2.840.1", ["v1"], [document(1), document(2)], ["main"])
    ledger.record([(lease, DELIVERED) for lease in ledger.lease("main", "a", 2)])
    damage(ledger, ledger.documents(job.id)[0].id, sealed=b"?" * 40)
    later = ledger.see("1.2.840.1", 28)
    assert len(ledger.predecessors(later.id)) == 1
    clock.now += 31 * 86_400
    assert ledger.purge() == 2
    assert ledger.purge() == 0
    assert len(ledger.predecessors(later.id)) == 1


def test_one_damaged_row_of_a_study_is_not_taken_for_a_wrong_key(url, clock):
    ledger = Ledger.open(url, SECRET, clock)
    commit(ledger, 1)
    clock.now += 1
    newest = commit(ledger, 2)
    with ledger._engine.begin() as c:
        c.execute(jobs.update().where(jobs.c.id == newest.id).values(sealed=b"?" * 40))
    ledger.close()
    again = Ledger.open(url, SECRET, clock)
    assert len(again.lease("main", "a", 9)) == 2
    again.close()


def test_another_destination_is_not_spared(ledger):
    ledger.commit("1.2.3", ["v1"], [document()], ["main", "archive"])
    for _ in range(BREAKER_THRESHOLD):
        for lease in ledger.lease("main", "a"):
            ledger.record([(lease, TRANSIENT)])
    assert len(ledger.lease("archive", "a")) == 1


def test_a_job_is_delivered_when_every_document_is(ledger):
    job = ledger.commit("1.2.3", ["v1"], [document(1), document(2)], ["main"])
    first, second = ledger.lease("main", "a", 2)
    ledger.record([(first, DELIVERED)])
    assert ledger.job(job.id).state is JobState.DRAFTED
    ledger.record([(second, DELIVERED)])
    assert ledger.job(job.id).state is JobState.DELIVERED


def test_more_images_make_a_revision_that_knows_its_predecessor(ledger, clock):
    first = ledger.see("1.2.3", 14)
    ledger.ready(first.id, 14)
    ledger.commit("1.2.3", ["14 images"], [document(1)], ["main"], first.id)
    ledger.record([(lease, DELIVERED) for lease in ledger.lease("main", "a")])
    clock.now += 60
    assert ledger.see("1.2.3", 14).id == first.id
    later = ledger.see("1.2.3", 28)
    assert (later.revises, later.reason) == (first.id, "MORE_IMAGES")
    assert ledger.predecessors(later.id) == ("1.2.1",)


def revision(ledger: Ledger, clock: Clock, images: int = 28):
    """The READY job of a study of which more images came."""
    clock.now += 60
    job = ledger.see("1.2.3", images)
    ledger.ready(job.id, images)
    return job


def first_draft(ledger: Ledger):
    job = ledger.see("1.2.3", 14)
    ledger.ready(job.id, 14)
    documents = [Document("SR", "1.2.1", b"half", "class series"), document(2)]
    return ledger.commit("1.2.3", ["14"], documents, ["main"], job.id)


def test_a_draft_that_was_not_sent_is_superseded_by_its_revision(ledger, clock):
    first = first_draft(ledger)
    for lease in ledger.lease("main", "a", 2):
        ledger.record([(lease, TRANSIENT)])  # nothing was sent: there was no connection
    later = revision(ledger, clock)
    assert (ledger.predecessors(later.id), ledger.generation(later.id)) == ((), 1)
    ledger.commit("1.2.3", ["28"], [document(3)], ["main"], later.id, supersede=True, predecessors=())
    assert (ledger.job(first.id).state, ledger.job(first.id).reason) == (JobState.SUPERSEDED, "REVISED")
    clock.now += MAX_BACKOFF_S
    assert [lease.uid for lease in ledger.lease("main", "a", 9)] == ["1.2.3"]


@pytest.mark.parametrize("outcome", [Outcome(Kind.UNKNOWN, "TIMEOUT"), Outcome(Kind.DENIED, "READ_X"), None])
def test_a_draft_that_may_have_been_sent_is_named_by_its_revision_and_goes_on(ledger, clock, outcome):
    first = first_draft(ledger)
    leases = ledger.lease("main", "a", 2)
    if outcome:  # else the worker was killed
        ledger.record([(lease, outcome) for lease in leases])
    later = revision(ledger, clock)
    found = ledger.predecessor_documents(later.id)
    assert {document.uid for document in found} == {"1.2.1", "1.2.2"}
    assert {(d.content, d.place) for d in found if d.uid == "1.2.1"} == {(b"", "class series")}
    assert ledger.generation(later.id) == 2
    uids = [document.uid for document in found]
    ledger.commit("1.2.3", ["28"], [document(3)], ["main"], later.id, supersede=True, predecessors=uids)
    assert ledger.job(first.id).state is JobState.DRAFTED
    clock.now += LEASE_S + MAX_BACKOFF_S
    assert ledger.lease("main", "a", 1)[0].uid in uids


@pytest.mark.parametrize(
    ("outcome", "after_s", "uids"),
    [
        (Outcome(Kind.PERMANENT, "ACCESSION_CHANGED"), 0, ("1.2.1",)),  # read back: it is there
        (Outcome(Kind.UNKNOWN, "TIMEOUT"), 73 * 3600, ("1.2.1",)),  # parked at its deadline
        (Outcome(Kind.PERMANENT, "DIMSE_A900"), 0, ()),
    ],
)
def test_a_parked_document_that_may_be_there_is_named_by_the_revision(ledger, clock, outcome, after_s, uids):
    job = commit(ledger)
    (lease,) = ledger.lease("main", "a")
    clock.now += after_s
    ledger.record([(lease, outcome)])
    assert states(ledger, job.id) == [DocumentState.PARKED]
    assert ledger.predecessors(ledger.see("1.2.840.1", 28).id) == uids


def test_a_draft_that_is_withheld_is_never_sent_and_its_revision_is(ledger):
    job = ledger.see("1.2.3", 14)
    ledger.ready(job.id, 14)
    held = ledger.commit("1.2.3", ["14"], [document(1, b"a mass")], ["main"], job.id, withheld=True)
    assert (held.id, held.state, held.reason) == (job.id, JobState.SUPERSEDED, "REVISED")
    assert not ledger.lease("main", "a")
    revised = ledger.commit("1.2.3", ["no mass"], [document(2)], ["main"], supersede=True)
    assert revised.revises == job.id
    assert [lease.uid for lease in ledger.lease("main", "a", 9)] == ["1.2.2"]


def test_a_revision_that_does_not_name_what_went_out_meanwhile_is_drafted_again(ledger, clock):
    first = first_draft(ledger)
    later = revision(ledger, clock)
    before = ledger.predecessors(later.id)
    ledger.record([(lease, DELIVERED) for lease in ledger.lease("main", "a", 2)])
    work = ("1.2.3", ["28"], [document(3)], ["main"], later.id)
    with pytest.raises(LedgerError) as caught:
        ledger.commit(*work, supersede=True, predecessors=before)
    assert caught.value.code == "PREDECESSORS_CHANGED"
    assert (ledger.job(first.id).state, ledger.job(later.id).state) == (JobState.DELIVERED, JobState.READY)
    ledger.commit(*work, supersede=True, predecessors=ledger.predecessors(later.id))


def test_a_document_that_joins_supersedes_nothing(ledger):
    first = ledger.commit("1.2.3", ["SR"], [document(1)], ["main"])
    ledger.commit("1.2.3", ["SR", "DOC"], [document(1), document(2)], ["main"])
    assert ledger.job(first.id).state is JobState.DRAFTED


def test_a_ready_study_that_grows_is_superseded_and_its_draft_refused(ledger, clock):
    first = ledger.see("1.2.3", 14)
    ledger.ready(first.id, 14)
    clock.now += 1
    ledger.see("1.2.3", 28)
    assert ledger.job(first.id).state is JobState.SUPERSEDED
    with pytest.raises(LedgerError) as caught:
        ledger.commit("1.2.3", ["14 images"], [document(1)], ["main"], first.id)
    assert caught.value.code == "STATE_WRONG"
    with pytest.raises(LedgerError) as caught:
        ledger.commit("1.2.3", ["14 images"], [document(1)], ["main"])
    assert caught.value.code == "STUDY_HELD"


def test_a_discarded_document_is_never_sent_and_its_bytes_are_gone(ledger):
    job = commit(ledger)
    ledger.discard(job.id, "WRONG_PATIENT")
    assert ledger.lease("main", "a") == ()
    (entry,) = ledger.documents(job.id)
    with pytest.raises(LedgerError) as caught:
        ledger.content(entry.id)
    assert caught.value.code == "CONTENT_ERASED"


def test_bytes_of_what_was_delivered_long_ago_are_erased_and_its_uid_is_kept(ledger, clock):
    job = commit(ledger)
    ledger.record([(lease, DELIVERED) for lease in ledger.lease("main", "a")])
    assert ledger.purge() == 0
    clock.now += 31 * 86_400
    assert ledger.purge() == 1
    assert ledger.purge() == 0
    later = ledger.see("1.2.840.1", 28)
    assert ledger.predecessors(later.id) == ("1.2.1",)
    assert later.revises == job.id


def test_events_can_be_added_to_and_nothing_else(ledger):
    commit(ledger)
    for statement in ("UPDATE events SET reason = 'X'", "DELETE FROM events"):
        with pytest.raises(sa.exc.DBAPIError, match="append-only"), ledger._engine.begin() as c:
            c.execute(sa.text(statement))


def test_the_tables_are_what_the_migrations_make(ledger):
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext

    from mla_med.ledger.tables import metadata

    with ledger._engine.connect() as c:
        assert compare_metadata(MigrationContext.configure(c), metadata) == []


def test_a_ledger_of_the_first_form_is_brought_to_the_newest(tmp_path):
    from alembic import command
    from alembic.config import Config

    url = f"sqlite:///{tmp_path}/ledger.db"
    commit(Ledger.open(url, SECRET))
    config = Config()
    config.set_main_option("script_location", str(Path(ledger_module.__file__).parent / "migrations"))
    with sa.create_engine(url).begin() as c:
        c.exec_driver_sql("ALTER TABLE breakers DROP COLUMN reason")
        c.exec_driver_sql("INSERT INTO breakers VALUES ('main', 3, 0, 30)")
        config.attributes["connection"] = c
        command.stamp(config, "0001")
    ledger = Ledger.open(url, SECRET)
    assert (ledger.denied("main"), ledger.is_open("main")) == ("", True)
    assert len(ledger.lease("main", "a")) == 1


def test_nothing_that_identifies_is_in_the_clear(tmp_path):
    ledger = Ledger.open(f"sqlite:///{tmp_path}/ledger.db", SECRET)
    content = b"Canary^Name 19990101 CANARY_ID"
    job = ledger.commit(
        "1.2.840.113619.77",
        ["1.2.840.113619.77.1"],
        [Document("SR", "1.2.840.113619.77.9", content)],
        ["main"],
    )
    assert ledger.study_uid(job.id) == "1.2.840.113619.77"
    on_disk = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"anary" not in on_disk.replace(b"CANARY", b"canary")
    assert b"113619" not in on_disk
    assert {path.stat().st_mode & 0o077 for path in tmp_path.iterdir()} == {0}
    ledger.close()


def test_another_key_opens_nothing(tmp_path):
    url = f"sqlite:///{tmp_path}/ledger.db"
    job = commit(Ledger.open(url, SECRET))
    with pytest.raises(LedgerError) as caught:
        Ledger.open(url, b"x" * 32).study_uid(job.id)
    assert caught.value.code == "KEY_WRONG"


def test_sealed_bytes_open_in_their_own_row_alone():
    key = SiteKey(SECRET)
    sealed = key.seal(b"bytes", "row 1")
    assert key.unseal(sealed, "row 1") == b"bytes"
    with pytest.raises(LedgerError):
        key.unseal(sealed, "row 2")


def test_sqlite_is_durable_at_every_commit(tmp_path):
    ledger = Ledger.open(f"sqlite:///{tmp_path}/ledger.db", SECRET)
    with ledger._engine.connect() as c:
        assert c.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert c.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL
    ledger.close()


def test_r9_a_full_disk_loses_no_job_and_it_goes_on_alone(small_disk):
    ledger = Ledger.open(f"sqlite:///{small_disk}/ledger.db", SECRET)
    made, refused = [], 0
    for number in range(900):
        try:
            made.append(commit(ledger, number, os.urandom(20_000)).id)
        except LedgerError as error:
            refused += error.code == "LEDGER_FULL"
            if refused == 3:
                break
    assert refused == 3
    assert {job.id for job in ledger.list_jobs(limit=1000)} == set(made)
    _grow(small_disk)
    commit(ledger, 999)
    assert all(ledger.content(d.id) for job_id in made for d in ledger.documents(job_id))
    ledger.close()
    print(f"R9: {len(made)} committed, then {refused} refused as LEDGER_FULL, 0 lost, 1 more with room again")


def _grow(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=16m", str(disk)], check=True)


@pytest.mark.parametrize("url", ["mysql://x/y", "nonsense", "sqlite://", "sqlite:///:memory:"])
def test_an_address_that_is_no_ledger_is_one_line(url):
    with pytest.raises(ConfigError):
        Ledger.open(url, SECRET)


def test_a_server_that_does_not_answer_is_one_line(tmp_path):
    pytest.importorskip("psycopg")
    with pytest.raises(LedgerError) as caught:
        Ledger.open(f"postgresql+psycopg://nobody:secret@/x?host={tmp_path}", SECRET)
    assert caught.value.code == "LEDGER_UNREACHABLE"
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_server_that_lets_us_in_and_then_says_nothing_is_left(monkeypatch):
    """As one that was stopped: its kernel still takes what it is told."""
    pytest.importorskip("psycopg")
    monkeypatch.setattr("mla_med.ledger.database._SILENCE_S", 0.3)
    kept = []

    def message(kind: bytes, body: bytes) -> bytes:
        return kind + struct.pack("!i", len(body) + 4) + body

    def serve() -> None:
        while True:
            peer, _ = server.accept()
            kept.append(peer)
            length, code = struct.unpack("!ii", peer.recv(8))
            if code == 80877103:  # may it be encrypted?
                peer.sendall(b"N")
                length, _ = struct.unpack("!ii", peer.recv(8))
            peer.recv(length)
            version = message(b"S", b"server_version\x0016.0\x00")
            peer.sendall(message(b"R", struct.pack("!i", 0)) + version + message(b"Z", b"I"))

    server = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=serve, daemon=True).start()
    with pytest.raises(LedgerError, match="wait timeout") as caught:
        Ledger.open(f"postgresql+psycopg://u@127.0.0.1:{server.getsockname()[1]}/x", SECRET)
    assert caught.value.code == "LEDGER_UNREACHABLE"


def test_postgresql_lets_no_statement_take_for_ever_unless_the_address_says_so(tmp_path):
    url = new_ledger_url("postgresql", tmp_path)
    for address, limit in ((url, "1min"), (f"{url}&options=-cstatement_timeout%3D5s", "5s")):
        engine = make_engine(address)
        with engine.connect() as c:
            assert c.exec_driver_sql("SHOW statement_timeout").scalar() == limit
        engine.dispose()


def test_a_ledger_that_all_read_at_once_says_that_it_cannot_be_reached(tmp_path):
    ledger = Ledger.open(f"sqlite:///{tmp_path}/ledger.db", SECRET)
    ledger._engine.pool._timeout = 0.1
    held = [ledger._engine.connect() for _ in range(15)]  # all that there are
    with pytest.raises(LedgerError) as caught:
        ledger.list_jobs()
    assert caught.value.code == "LEDGER_UNREACHABLE"
    for connection in held:
        connection.close()
    ledger.close()


def test_the_lease_of_a_process_that_is_gone_is_free_at_once_and_that_of_another_host_by_time(ledger):
    commit(ledger, content=b"a nodule")
    host, pid, _, thread = owner().split(" ")
    assert ledger.lease("main", f"{host} {pid} 1 {thread}")  # our pid, of a process that was before us
    assert not ledger.lease("main", owner())
    assert ledger.free_dead("main") == 1
    assert ledger.lease("main", "elsewhere 1 1 0")
    assert ledger.free_dead("main") == 0
    assert not ledger.lease("main", owner())


def test_a_host_whose_name_ends_otherwise_is_another_host(monkeypatch):
    pods = [f"mla-med-night-deployment-7d9f8b6c5-{pod}" for pod in ("abcde", "xyz12")]
    monkeypatch.setattr(socket, "gethostname", lambda: pods[0])
    host, pid, _, thread = owner().split(" ")
    gone = f"{host} {pid} 1 {thread}"  # our pid, of a process that was before us
    assert is_dead(gone)
    monkeypatch.setattr(socket, "gethostname", lambda: pods[1])
    assert not is_dead(gone)
    assert len(f"{owner(99)} 4194304 99999999999") <= outbox.c.owner.type.length


# Clocks that are set back, and two at the same moment


def test_studies_that_are_not_complete_are_listed_the_oldest_first_whatever_is_damaged(ledger, clock):
    uids = [f"1.2.{number}" for number in range(5)]
    seen = []
    for uid in uids:
        seen.append(ledger.see(uid, 3))
        clock.now += 1
    ledger.hold(seen[1].id, "STILL_GROWING", 2)
    ledger.ready(seen[2].id, 3)
    with ledger._engine.begin() as c:
        c.execute(jobs.update().where(jobs.c.id == seen[3].id).values(sealed=b"damaged"))
    assert ledger.open_studies() == (uids[0], uids[1], uids[4])


def test_a_study_that_grows_after_the_clock_was_set_back_has_one_newest_job(ledger, clock):
    first_draft(ledger)
    clock.now -= 3600
    grown = ledger.see("1.2.3", 20)
    clock.now += 60
    assert ledger.see("1.2.3", 20).id == grown.id
    assert ledger.newest_job("1.2.3").id == grown.id
    assert len(ledger.list_jobs()) == 2


def test_what_a_clock_that_was_ahead_put_off_is_due_when_it_is_right_again(ledger, clock):
    right, clock.now = clock.now, clock.now + 400 * 86_400
    for number in range(BREAKER_THRESHOLD + 1):
        commit(ledger, number)
    failed = ledger.lease("main", "a", BREAKER_THRESHOLD)
    for lease in failed:
        ledger.record([(lease, TRANSIENT)])
    clock.now += 60
    (probe,) = ledger.lease("main", "who dies")
    clock.now = right
    assert ledger.next_due_s("main") <= right + MAX_BACKOFF_S
    again = []
    while leases := ledger.lease("main", "a"):
        again += leases
        ledger.record([(lease, DELIVERED) for lease in leases])
    assert len(again) == BREAKER_THRESHOLD + 1
    assert probe.document_id in {lease.document_id for lease in again}


def slow(ledger: Ledger, name: str) -> threading.Event:
    """After this part of it, a transaction takes a moment, for others to come between."""
    there, real = threading.Event(), getattr(ledger, name)

    def part(*args):
        found = real(*args)
        there.set()
        time.sleep(0.6)
        return found

    setattr(ledger, name, part)
    return there


@pytest.fixture
def two(url, clock):
    pair = Ledger.open(url, SECRET, clock), Ledger.open(url, SECRET, clock)
    yield pair
    for one in pair:
        one.close()


def test_a_study_that_is_discarded_while_its_draft_is_committed_stays_discarded(two):
    worker, person = two
    job = worker.see("1.2.3", 14)
    worker.ready(job.id, 14)
    there = slow(worker, "_put")
    with ThreadPoolExecutor(1) as pool:
        committed = pool.submit(worker.commit, "1.2.3", ["14"], [document()], ["main"], job.id)
        there.wait(30)
        person.discard(job.id, "WRONG_PATIENT")
        assert committed.result().state is JobState.DRAFTED
    assert person.job(job.id).state is JobState.DISCARDED
    assert states(person, job.id) == [DocumentState.DISCARDED]
    assert not worker.lease("main", "a")


def test_a_document_that_is_just_being_leased_is_not_discarded(two):
    worker, person = two
    job = commit(worker)
    there = slow(worker, "_log_all")
    with ThreadPoolExecutor(1) as pool:
        leased = pool.submit(worker.lease, "main", "a")
        there.wait(30)
        with pytest.raises(LedgerError) as caught:
            person.discard(job.id, "WRONG_PATIENT")
        assert caught.value.code == "BEING_SENT"
        assert len(leased.result()) == 1


def test_a_job_whose_last_documents_are_delivered_and_superseded_at_once_is_over(two, clock):
    worker, other = two
    job = first_draft(worker)
    (lease,) = worker.lease("main", "a")
    later = revision(other, clock)
    there = slow(worker, "_follow")
    with ThreadPoolExecutor(1) as pool:
        recorded = pool.submit(worker.record, [(lease, DELIVERED)])
        there.wait(30)
        other.commit("1.2.3", ["28"], [document(3)], ["main"], later.id, supersede=True)
        assert recorded.result() == (True,)
    assert worker.job(job.id).state is JobState.DELIVERED
