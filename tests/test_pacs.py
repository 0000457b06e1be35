"""Studies out of a PACS: whole or held; hostile names, certificates, settings, logs and the verbs."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import ipaddress
import json
import logging
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import drafts
import pytest
from fake_pacs import http_pacs, tls_front
from ledgers import default_kind, new_ledger_url
from orthanc import orthanc
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import SecondaryCaptureImageStorage

import mla_med
from mla_med.errors import ConfigError, OutputError, PacsError, StudyError
from mla_med.ledger.ledger import Ledger
from mla_med.ledger.nouns import JobState, Kind, Outcome
from mla_med.logs import Redactor, log
from mla_med.pacs.check import check_pacs
from mla_med.pacs.complete import Received, Verdict, judge, look
from mla_med.pacs.deliver import commit_documents, deliver_due
from mla_med.pacs.dimse import DimsePeer
from mla_med.pacs.letter import read_letter
from mla_med.pacs.peer import SeriesCount
from mla_med.pacs.pull import check_room, folder_of, pull_due, pull_study, take_dropped
from mla_med.pacs.run import make_peer
from mla_med.pacs.settings import (
    Credentials,
    PacsSettings,
    read_credentials,
    read_ledger_secret,
    read_settings,
)
from mla_med.pacs.web import WebPeer

SECRET = bytes(range(32))
ROOT = Path(__file__).parents[1]
SLICES = 6
SETTLE_S = 60.0


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2026, 11, 2, tzinfo=UTC).timestamp()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger_url(tmp_path) -> str:
    return new_ledger_url(default_kind(), tmp_path)


@pytest.fixture
def ledger(ledger_url, clock):
    made = Ledger.open(ledger_url, SECRET, clock)
    yield made
    made.close()


def site(tmp_path, url: str = "http://127.0.0.1:9", **more) -> PacsSettings:
    values = {"max_used": 1.0, "min_free_bytes": 0, "settle_s": SETTLE_S, "timeout_s": 10.0, "days": 3}
    values |= {"inbox": str(tmp_path / "inbox")} | more
    return PacsSettings(dicomweb_url=url, **values)


def upload(server, number: int, slices, **changes) -> None:
    for k in slices:
        image = drafts.image(number, k)
        for keyword, value in changes.items():
            setattr(image, keyword, value)
        server.upload(drafts.to_bytes(image))


def pull(ledger, peer, settings, clock, number: int):
    """Two looks, the settling time apart."""
    first = pull_study(ledger, peer, settings, drafts.study_uid(number))
    assert first is None
    clock.now += SETTLE_S
    return pull_study(ledger, peer, settings, drafts.study_uid(number))


# R8: half a study is never whole


def test_a_study_is_taken_after_two_equal_counts_some_time_apart(server, ledger, clock, tmp_path):
    settings = site(tmp_path, server.dicomweb_url)
    peer = make_peer(settings, Credentials())
    upload(server, 1, range(1, 4))
    assert list(pull_due(ledger, peer, settings)) == []
    clock.now += SETTLE_S
    upload(server, 1, range(4, SLICES + 1))
    assert list(pull_due(ledger, peer, settings)) == []  # another count: the time begins anew
    clock.now += SETTLE_S - 1
    assert list(pull_due(ledger, peer, settings)) == []
    clock.now += 1
    (pulled,) = pull_due(ledger, peer, settings)
    assert (pulled.job.state, pulled.job.own_instances) == (JobState.READY, SLICES)
    assert sorted(p.name for p in pulled.folder.iterdir()) == [f"{k:06d}.dcm" for k in range(1, SLICES + 1)]
    assert list(pull_due(ledger, peer, settings)) == []


class HalfPeer(WebPeer):
    """The PACS stops in the middle, or hands over half and says that this is all."""

    aborts = True

    def retrieve(self, study_uid, series_uid, write):
        files = []
        super().retrieve(study_uid, series_uid, files.append)
        for file in files[: len(files) // 2]:
            write(file)
        if self.aborts:
            raise PacsError("gone", code="CONNECTION_LOST")


def test_r8_a_retrieval_that_stops_half_way_leaves_nothing_and_is_tried_again(
    server, ledger, clock, tmp_path
):
    settings = site(tmp_path, server.dicomweb_url)
    upload(server, 1, range(1, SLICES + 1))
    peer = HalfPeer(settings, Credentials())
    list(pull_due(ledger, peer, settings))
    clock.now += SETTLE_S
    assert list(pull_due(ledger, peer, settings)) == []
    assert list(Path(settings.inbox).iterdir()) == []
    job = ledger.newest_job(drafts.study_uid(1))
    assert job.state is JobState.DISCOVERED
    whole = pull_study(ledger, WebPeer(settings, Credentials()), settings, drafts.study_uid(1))
    assert whole.job.state is JobState.READY


def test_r8_fewer_files_than_the_pacs_counts_are_held(server, ledger, clock, tmp_path):
    settings = site(tmp_path, server.dicomweb_url)
    upload(server, 1, range(1, SLICES + 1))
    peer = HalfPeer(settings, Credentials())
    peer.aborts = False
    held = pull(ledger, peer, settings, clock, 1)
    assert (held.job.state, held.job.reason, held.job.own_instances) == ("WAITING", "COUNT_DIFFERS", 3)
    assert held.folder is None
    assert list(Path(settings.inbox).iterdir()) == []


def test_r8_a_gap_between_slices_is_held_until_the_slice_comes(server, ledger, clock, tmp_path):
    settings = site(tmp_path, server.dicomweb_url)
    peer = make_peer(settings, Credentials())
    upload(server, 1, [1, 2, 3, 5, 6])
    held = pull(ledger, peer, settings, clock, 1)
    assert (held.job.state, held.job.reason) == (JobState.WAITING, "MISSING_SLICE")
    upload(server, 1, [4])
    whole = pull(ledger, peer, settings, clock, 1)
    assert (whole.job.id, whole.job.state) == (held.job.id, JobState.READY)


def test_r8_fewer_images_than_the_scanner_acquired_are_held(server, ledger, clock, tmp_path):
    settings = site(tmp_path, server.dicomweb_url)
    upload(server, 1, range(1, 4), ImagesInAcquisition=SLICES)
    held = pull(ledger, make_peer(settings, Credentials()), settings, clock, 1)
    assert (held.job.state, held.job.reason) == (JobState.WAITING, "FEWER_THAN_ACQUIRED")


class FewPeer:
    """One study of four images, of which it hands over so many."""

    commits = False

    def __init__(self, date: date, hands_over: int):
        self.date, self.hands_over, self.first = date, hands_over, date

    def find_studies(self, first, modalities):
        self.first = first
        return [drafts.study_uid(1)] if self.date >= first else []

    def count(self, study_uid):
        return [SeriesCount(f"{study_uid}.1", "CT", 4)]

    def retrieve(self, study_uid, series_uid, write):
        for k in range(1, self.hands_over + 1):
            write(drafts.to_bytes(drafts.image(1, k)))


def test_r8_a_study_that_is_held_is_asked_for_again_however_old_it_is_by_then(ledger, clock, tmp_path):
    settings, peer = site(tmp_path, settle_s=0.0), FewPeer(date(2026, 11, 2), 3)
    (held,) = pull_due(ledger, peer, settings)
    assert held.job.reason == "COUNT_DIFFERS"
    peer.hands_over = 4
    clock.now += 30 * 86_400
    (whole,) = pull_due(ledger, peer, settings)
    assert (whole.job.id, whole.job.state) == (held.job.id, JobState.READY)
    assert list(pull_due(ledger, peer, settings)) == []


def test_studies_are_looked_for_from_the_day_it_is_here_and_not_in_greenwich(
    ledger, clock, tmp_path, monkeypatch
):
    monkeypatch.setenv("TZ", "America/Los_Angeles")
    time.tzset()
    try:
        clock.now = datetime(2026, 11, 26, 19, 0).timestamp()  # tomorrow already, in Greenwich
        peer = FewPeer(date(2026, 11, 26), 4)
        list(pull_due(ledger, peer, site(tmp_path, days=0)))
        assert peer.first == date(2026, 11, 26)
    finally:
        monkeypatch.undo()
        time.tzset()


def test_r8_late_slices_make_a_revision_linked_to_what_was_delivered(server, ledger, clock, tmp_path):
    settings = site(tmp_path, server.dicomweb_url)
    peer = make_peer(settings, Credentials())
    upload(server, 1, range(1, 4))
    first = pull(ledger, peer, settings, clock, 1).job
    content = drafts.sr(1)
    commit_documents(ledger, [content], "pacs", job_id=first.id, validate="off")
    assert deliver_due(ledger, peer, "pacs", workers=1) == {Kind.DELIVERED: 1}
    clock.now += SETTLE_S
    assert pull_study(ledger, peer, settings, drafts.study_uid(1)) is None  # our own SR is no new image
    upload(server, 1, range(4, SLICES + 1))
    later = pull(ledger, peer, settings, clock, 1).job
    assert (later.state, later.revises, later.own_instances) == (JobState.READY, first.id, SLICES)
    assert ledger.predecessors(later.id) == (read_letter(content).uid,)


def test_r8_two_patients_in_a_study_are_quarantined(ledger, clock, tmp_path):
    settings = site(tmp_path, settle_s=0.0)
    drop(tmp_path / "drop" / "a", 1, range(1, 4))
    drop(tmp_path / "drop" / "a", 1, range(4, 7), PatientID="OTHER")
    (pulled,) = take_dropped(ledger, tmp_path / "drop", settings)
    assert (pulled.job.state, pulled.job.reason) == (JobState.QUARANTINED, "MIXED_PATIENTS")
    assert ledger.retry(pulled.job.id).state is JobState.DISCOVERED


def test_r8_figures(tmp_path):
    uid = "1.2.3"
    whole = Received((uid,), 28, 28, 0, (), ())
    cases = {
        "COUNT_DIFFERS": (whole, 30),
        "MISSING_SLICE": (Received((uid,), 28, 0, 0, (), ("MISSING_SLICE",)), 28),
        "FEWER_THAN_ACQUIRED": (Received((uid,), 14, 28, 0, (), ()), 14),
        "MIXED_PATIENTS": (Received((uid,), 28, 0, 0, ("MIXED_PATIENTS",), ()), 28),
        "OTHER_STUDY": (Received((uid, "1.2.4"), 28, 0, 0, (), ()), 28),
        "TRUNCATED_PIXELS": (Received((uid,), 28, 0, 0, (), ("TRUNCATED_PIXELS",)), 28),
        "TRUNCATED": (Received((uid,), 28, 0, 0, ("TRUNCATED",), ()), 28),
        "UNREADABLE": (Received((uid,), 28, 0, 1, (), ()), 28),
    }
    found = {code: judge(received, uid, counted) for code, (received, counted) in cases.items()}
    complete = sum(verdict.state == "READY" for verdict in found.values())
    print(f"R8: {len(cases)} kinds of half studies, {complete} taken for complete")
    assert {code: verdict.reason for code, verdict in found.items()} == {code: code for code in cases}
    assert complete == 0
    assert judge(whole, uid, 28) == Verdict("READY")


@pytest.mark.xfail(reason="no header says how many slices there should be", strict=True)
def test_a_missing_end_that_no_header_states_is_seen(server, ledger, clock, tmp_path):
    settings = site(tmp_path, server.dicomweb_url)
    upload(server, 1, range(1, 4))
    assert pull(ledger, make_peer(settings, Credentials()), settings, clock, 1).job.state is JobState.WAITING


# The other ways in


def test_a_study_comes_by_c_find_and_c_get(server, ledger, clock, tmp_path):
    settings = site(
        tmp_path, "", protocol="dimse", host="127.0.0.1", port=server.dicom_port, called_ae_title="ORTHANC"
    )
    upload(server, 1, range(1, SLICES + 1))
    peer = make_peer(settings, Credentials())
    peer.echo()
    assert peer.find_studies(date(2026, 11, 1), ["CT"]) == [drafts.study_uid(1)]
    assert peer.find_studies(date(2026, 11, 2), ["CT"]) == []
    pulled = pull(ledger, peer, settings, clock, 1)
    assert pulled.job.state is JobState.READY
    assert look(pulled.folder).instances == SLICES


def test_a_dose_sheet_comes_by_c_get_with_its_study(server, ledger, clock, tmp_path):
    """A picture of a screen in a series of CT: were it not taken, nothing of the study would come."""
    settings = site(
        tmp_path, "", protocol="dimse", host="127.0.0.1", port=server.dicom_port, called_ae_title="ORTHANC"
    )
    upload(server, 1, range(1, SLICES + 1))
    sheet = drafts.image(1, 99)
    sheet.SeriesInstanceUID = f"{drafts.study_uid(1)}.9"
    sheet.SOPClassUID = sheet.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    server.upload(drafts.to_bytes(sheet))
    pulled = pull(ledger, make_peer(settings, Credentials()), settings, clock, 1)
    assert pulled.job.state is JobState.READY
    assert look(pulled.folder).instances == SLICES + 1


def test_a_study_comes_by_c_move_to_a_store_beside_us(server, ledger, clock, tmp_path):
    with contextlib.ExitStack() as stack:
        beside = stack.enter_context(orthanc(DicomAet="BESIDE"))
        known = {"b": ["BESIDE", "127.0.0.1", beside.dicom_port]}
        far = stack.enter_context(orthanc(DicomModalities=known))
        settings = site(
            tmp_path,
            "",
            protocol="dimse",
            host="127.0.0.1",
            port=far.dicom_port,
            called_ae_title="ORTHANC",
            move_to="BESIDE",
            beside_url=beside.dicomweb_url,
        )
        upload(far, 1, range(1, SLICES + 1))
        pulled = pull(ledger, make_peer(settings, Credentials()), settings, clock, 1)
        assert pulled.job.state is JobState.READY
        assert len(beside.get("/instances")) == SLICES


def drop(folder: Path, number: int, slices, **changes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for k in slices:
        image = drafts.image(number, k)
        for keyword, value in changes.items():
            setattr(image, keyword, value)
        image.save_as(folder / f"{k}.dcm", enforce_file_format=True)


def test_a_dropped_study_is_taken_after_a_quiet_time_and_says_that_nobody_counted(ledger, tmp_path):
    drop(tmp_path / "drop" / "study", 1, range(1, SLICES + 1))
    (tmp_path / "drop" / ".being-written").mkdir()
    for path in (tmp_path / "drop" / "study").iterdir():
        os.utime(path, (1e9, 1e9))  # as cp -p and rsync -a do
    settings = site(tmp_path, settle_s=1.0)
    assert list(take_dropped(ledger, tmp_path / "drop", settings)) == []  # just copied, whatever they say
    time.sleep(1.1)
    (pulled,) = take_dropped(ledger, tmp_path / "drop", settings)
    assert (pulled.job.state, pulled.job.reason) == (JobState.READY, "QUIET_TIMER")
    assert sorted(p.name for p in (tmp_path / "drop").iterdir()) == [".being-written"]
    assert look(pulled.folder).instances == SLICES


def test_what_is_dropped_while_a_study_is_read_is_not_removed_unread(ledger, tmp_path):
    drop(tmp_path / "drop" / "study", 1, range(1, 4))
    settings = site(tmp_path, settle_s=0.0)

    def call(read, folder):
        received = read(folder)
        drop(tmp_path / "drop" / "study", 1, range(4, SLICES + 1))
        return received

    assert list(take_dropped(ledger, tmp_path / "drop", settings, call)) == []
    assert len(list((tmp_path / "drop" / "study").iterdir())) == SLICES
    (pulled,) = take_dropped(ledger, tmp_path / "drop", settings)
    assert (pulled.job.state, look(pulled.folder).instances) == (JobState.READY, SLICES)
    assert not list((tmp_path / "drop").iterdir())


def test_only_the_same_images_are_removed_when_a_study_is_dropped_again(ledger, tmp_path):
    settings, folder = site(tmp_path, settle_s=0.0), tmp_path / "drop" / "study"
    drop(folder, 1, range(1, SLICES + 1))
    assert len(list(take_dropped(ledger, folder.parent, settings))) == 1
    drop(folder, 1, range(1, 4))
    assert list(take_dropped(ledger, folder.parent, settings)) == []
    assert not folder.exists()
    drop(folder, 1, range(11, 13), SeriesInstanceUID="1.2.3.4")  # nobody has seen these
    assert list(take_dropped(ledger, folder.parent, settings)) == []
    assert len(list(folder.iterdir())) == 2


def test_a_dropped_file_that_ends_inside_its_pixels_is_held_and_stays(ledger, tmp_path):
    folder = tmp_path / "drop" / "study"
    drop(folder, 1, range(1, SLICES + 1))
    whole = (folder / "3.dcm").read_bytes()
    (folder / "3.dcm").write_bytes(whole[: len(whole) // 2])
    (held,) = take_dropped(ledger, folder.parent, site(tmp_path, settle_s=0.0))
    assert (held.job.state, held.job.reason) == (JobState.WAITING, "TRUNCATED_PIXELS")
    assert len(list(folder.iterdir())) == SLICES
    (folder / "3.dcm").write_bytes(whole)
    (pulled,) = take_dropped(ledger, folder.parent, site(tmp_path, settle_s=0.0))
    assert (pulled.job.id, pulled.job.state) == (held.job.id, JobState.READY)


@pytest.mark.parametrize("make", [lambda p: os.mkfifo(p), lambda p: p.symlink_to("/etc/passwd")])
def test_s4_a_pipe_or_a_link_in_the_drop_folder_is_refused_and_waits_for_nobody(ledger, tmp_path, make):
    drop(tmp_path / "drop" / "study", 1, range(1, 3))
    make(tmp_path / "drop" / "study" / "x")
    assert list(take_dropped(ledger, tmp_path / "drop", site(tmp_path, settle_s=0.0))) == []
    assert ledger.list_jobs() == ()


# R9: our disk


def test_r9_intake_stops_before_the_disk_is_full(tmp_path):
    with pytest.raises(PacsError) as caught:
        check_room(site(tmp_path, max_used=0.0))
    assert caught.value.code == "INTAKE_STOPPED"
    with pytest.raises(PacsError) as caught:
        check_room(site(tmp_path, min_free_bytes=10**18))
    assert caught.value.code == "INTAKE_STOPPED"


def test_r9_intake_stops_between_two_studies_too(server, ledger, clock, tmp_path, monkeypatch):
    settings = site(tmp_path, server.dicomweb_url, max_used=0.9)
    peer = make_peer(settings, Credentials())
    for number in (1, 2, 3):
        upload(server, number, range(1, SLICES + 1))
    full = []
    monkeypatch.setattr(
        "mla_med.pacs.pull.shutil.disk_usage",
        lambda path: SimpleNamespace(total=100, used=99 if full else 1, free=10**12),
    )
    assert list(pull_due(ledger, peer, settings)) == []
    clock.now += SETTLE_S
    due = pull_due(ledger, peer, settings)
    assert next(due).job.state is JobState.READY
    full.append(True)
    with pytest.raises(PacsError) as caught:
        next(due)
    assert caught.value.code == "INTAKE_STOPPED"


def test_r9_a_full_inbox_takes_no_half_file_and_the_study_comes_later(
    server, ledger, clock, tmp_path, full_disk
):
    settings = site(tmp_path, server.dicomweb_url, inbox=str(full_disk / "inbox"))
    Path(settings.inbox).mkdir()
    peer = make_peer(settings, Credentials())
    upload(server, 1, range(1, SLICES + 1))  # 6 x 39 kB, and the disk has 64 kB
    with pytest.raises(OutputError) as caught:
        pull(ledger, peer, settings, clock, 1)
    assert caught.value.code == "INBOX_FULL"
    assert list(Path(settings.inbox).iterdir()) == []
    assert ledger.newest_job(drafts.study_uid(1)).state is JobState.DISCOVERED
    subprocess.run(["mount", "-o", "remount,size=8m", str(full_disk)], check=True)
    (pulled,) = pull_due(ledger, peer, settings)
    assert (pulled.job.state, len(list(pulled.folder.iterdir()))) == (JobState.READY, SLICES)
    print("R9: full inbox, 0 truncated files, 0 jobs lost, taken in alone when there was room")


def test_r9_an_inbox_without_room_for_a_name_or_a_folder_is_full_in_one_line(
    ledger, clock, tmp_path, full_disk
):
    settings = site(tmp_path, settle_s=0.0, inbox=str(full_disk / "inbox"))
    Path(settings.inbox).mkdir()
    subprocess.run(["mount", "-o", "remount,nr_inodes=2", str(full_disk)], check=True)
    peer = FewPeer(date(2026, 11, 2), 4)
    for inbox in (settings.inbox, str(full_disk / "other")):
        with pytest.raises(OutputError) as caught:
            list(pull_due(ledger, peer, replace(settings, inbox=inbox)))
        assert caught.value.code == "INBOX_FULL"
    subprocess.run(["mount", "-o", "remount,nr_inodes=100,size=8m", str(full_disk)], check=True)
    assert [pulled.job.state for pulled in pull_due(ledger, peer, settings)] == [JobState.READY]


def test_an_inbox_on_a_file_system_without_locks_is_said_and_not_passed_over(
    ledger, clock, tmp_path, monkeypatch
):
    def flock(file, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OutputError, match="no locks") as caught:
        list(pull_due(ledger, FewPeer(date(2026, 11, 2), 4), site(tmp_path, settle_s=0.0)))
    assert caught.value.code == "INBOX_NO_LOCKS"


# S5 to S8: hostile peers


@pytest.mark.parametrize(
    "uid", ["../../etc/passwd", "1.2.3/../../x", "1.2.3?x=1", "", "1.2." + "3" * 62, "1.2\n3"]
)
def test_s5_a_uid_that_is_none_goes_nowhere(network, tmp_path, ledger, uid):
    studies = [{"0020000D": {"vr": "UI", "Value": [one]}} for one in ("1.2.3", uid, "1.2.4")]
    asked = []

    def answer(method, path, body):
        asked.append(path)
        return 200, json.dumps(studies if "/studies?" in path else []).encode()

    with http_pacs(answer) as url:
        settings = site(tmp_path, url)
        assert list(pull_due(ledger, make_peer(settings, Credentials()), settings)) == []
    # and hides no other
    assert {urlsplit(path).path for path in asked} == {
        "/studies",
        "/studies/1.2.3/series",
        "/studies/1.2.4/series",
    }
    assert list(Path(settings.inbox).iterdir()) == []


def test_s5_a_uid_that_is_none_hides_no_other_over_dimse_either(tmp_path):
    class Told(DimsePeer):
        def _ask(self, query):
            items = [Dataset() for _ in range(4)]
            items[0].StudyInstanceUID, items[2].StudyInstanceUID = "1.2.3", "1.2.4"
            items[1].add_new("StudyInstanceUID", "LO", "1.2.840.ABC")
            return items, 0x0000

    settings = site(tmp_path, "", protocol="dimse", host="127.0.0.1", called_ae_title="FAKE")
    assert Told(settings).find_studies(date(2026, 11, 1), ["CT"]) == ["1.2.3", "1.2.4"]


SERIES = {"0020000E": {"Value": ["1.2.4"]}, "00080060": {"Value": ["CT"]}}


@pytest.mark.parametrize(
    "answer",
    [
        {"error": "busy"},
        None,
        7,
        [7],
        [{"0020000D": None, "0020000E": None}],
        [{"0020000D": {"Value": {"x": 1}}, "0020000E": {"Value": {"x": 1}}}],
        [{"0020000D": {"Value": ["1.2.3"]}, "00080061": {"Value": 7}} | SERIES | {"00201209": 7}],
        [
            {"0020000D": {"Value": ["1.2.3"]}, "00080061": {"Value": 7}}
            | SERIES
            | {"00201209": {"Value": [None]}}
        ],
    ],
)
def test_an_answer_that_is_none_is_an_error_of_the_pacs(network, tmp_path, answer):
    with http_pacs(lambda *_: (200, json.dumps(answer).encode())) as url:
        peer = make_peer(site(tmp_path, url), Credentials())
        for ask in (lambda: peer.find_studies(date(2026, 11, 1), ["CT"]), lambda: peer.count("1.2.3")):
            with pytest.raises(PacsError) as caught:
                ask()
            assert caught.value.code == "ANSWER_UNREADABLE"


def test_s5_nothing_of_a_header_becomes_a_file_name_and_s6_every_preamble_is_empty(
    server, ledger, clock, tmp_path
):
    settings = site(tmp_path, server.dicomweb_url)
    hostile = "../../<script>=cmd|x"
    for k in range(1, SLICES + 1):
        image = drafts.image(1, k)
        image.PatientName = image.PatientID = image.SeriesDescription = image.StudyDescription = hostile
        image.preamble = b"MZ" + b"\x90" * 126
        server.upload(drafts.to_bytes(image))
    pulled = pull(ledger, make_peer(settings, Credentials()), settings, clock, 1)
    names = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")]
    outside = [
        n for n in names if not re.fullmatch(r"inbox|inbox/[0-9a-f]{32}(/\d{6}\.dcm)?|\w+\.db(-\w+)?", n)
    ]
    preambles = {path.read_bytes()[:128] for path in pulled.folder.iterdir()}
    kept = len(preambles - {bytes(128)})
    print(f"S5: {len(names)} names, {len(outside)} not ours. S6: {SLICES} MZ preambles, {kept} kept")
    assert outside == []
    assert preambles == {bytes(128)}
    assert pulled.folder == folder_of(settings, pulled.job.id)


def test_s7_we_ship_no_listener(server, ledger, clock, tmp_path):
    package = Path(mla_med.__file__).parent
    words = re.compile(r"start_server|socket\.socket|socketserver|HTTPServer|evt\.EVT_C_(?!STORE)")
    for path in [*package.glob("pacs/*.py"), *package.glob("ledger/*.py"), package / "cli_pacs.py"]:
        assert not words.search(path.read_text()), path
    settings = site(
        tmp_path, "", protocol="dimse", host="127.0.0.1", port=server.dicom_port, called_ae_title="ORTHANC"
    )
    upload(server, 1, range(1, SLICES + 1))
    seen = set()
    peer = make_peer(settings, Credentials())
    handed = []
    peer.retrieve(
        drafts.study_uid(1), f"{drafts.study_uid(1)}.1", lambda f: handed.append(seen.update(listening()))
    )
    assert len(handed) == SLICES
    ours = seen - {server.http_port, server.dicom_port}
    print(f"S7: 0 listeners in the package, {len(ours)} ports opened by us while images come by C-GET")
    assert ours == set()


def listening() -> set[int]:
    """Ports of this network namespace that accept connections (state 0A of /proc/net/tcp)."""
    rows = [line.split() for line in Path("/proc/thread-self/net/tcp").read_text().splitlines()[1:]]
    return {int(row[1].rsplit(":", 1)[1], 16) for row in rows if row[3] == "0A"}


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    return Pki(tmp_path_factory.mktemp("pki"))


class Pki:
    """Two authorities, and certificates by them: PEM files."""

    def __init__(self, folder: Path):
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import NameOID

        self.folder = folder
        now = datetime.now(UTC)

        def name(words):
            return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, words)])

        def make(words, issuer=None, host="127.0.0.1", days=1):
            key = ec.generate_private_key(ec.SECP256R1())
            signer_name, signer = (name(words), key) if issuer is None else issuer
            alt = x509.IPAddress(ipaddress.ip_address(host))
            begin = now - timedelta(days=3)
            certificate = (
                x509.CertificateBuilder()
                .subject_name(name(words))
                .issuer_name(signer_name)
                .public_key(key.public_key())
                .serial_number(x509.random_serial_number())
                .not_valid_before(begin)
                .not_valid_after(now + timedelta(days=days))
                .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
                .add_extension(x509.SubjectAlternativeName([alt]), critical=False)
                .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
                .add_extension(
                    x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
                )
                .add_extension(
                    x509.KeyUsage(
                        *(True, False, False, False, False, issuer is None, issuer is None, False, False)
                    ),
                    critical=True,
                )
                .sign(signer, hashes.SHA256())
            )
            pem = certificate.public_bytes(serialization.Encoding.PEM)
            secret = key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            (folder / f"{words}.pem").write_bytes(pem)
            (folder / f"{words}.key").write_bytes(secret)
            (folder / f"{words}.both").write_bytes(secret + pem)
            return name(words), key

        authority, other = make("authority"), make("other-authority")
        make("server", authority)
        make("server-elsewhere", authority, host="127.0.0.9")
        make("server-expired", authority, days=-1)
        make("client", authority)
        make("client-of-other", other)

    def path(self, name: str) -> str:
        return str(self.folder / name)


def test_s8_tls_is_accepted_with_the_right_certificates_and_refused_six_other_ways(
    network, pki, tmp_path, ledger
):
    def with_tls(name: str) -> dict:
        return {
            "DicomTlsEnabled": True,
            "DicomTlsCertificate": pki.path(f"{name}.pem"),
            "DicomTlsPrivateKey": pki.path(f"{name}.key"),
            "DicomTlsTrustedCertificates": pki.path("authority.pem"),
            "DicomTlsRemoteCertificateRequired": True,
        }

    def before(server, name: str):
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=pki.path("authority.pem"))
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(pki.path(f"{name}.both"))
        return tls_front(server.http_port, context)

    def peer(url: str, port: int, ca="authority", client="client", tls=True):
        settings = site(
            tmp_path,
            url if tls else url.replace("https", "http"),
            protocol="dicomweb" if url else "dimse",
            host="127.0.0.1",
            port=port,
            called_ae_title="ORTHANC",
            tls=tls,
            timeout_s=3.0,
            ca_file=pki.path(f"{ca}.pem"),
            cert_file=pki.path(f"{client}.pem") if client else "",
            key_pem_file=pki.path(f"{client}.key") if client else "",
        )
        return make_peer(settings, Credentials())

    def result(*args, **more) -> str:
        try:
            peer(*args, **more).echo()
        except PacsError:
            return "refused"
        return "accepted"

    found: dict[str, dict[str, str]] = {"HTTPS": {}, "DIMSE": {}}
    with orthanc(**with_tls("server")) as server, before(server, "server") as front:
        for number, (name, results) in enumerate(found.items()):
            place = (f"{front}/dicom-web" if name == "HTTPS" else "", server.dicom_port)
            results |= {
                "right certificates": result(*place),
                "no client certificate": result(*place, client=""),
                "client of another authority": result(*place, client="client-of-other"),
                "server of another authority": result(*place, ca="other-authority"),
                "plain text": result(*place, tls=False),
            }
            commit_documents(ledger, [drafts.sr(number)], name, validate="off")
            assert deliver_due(ledger, peer(*place), name, workers=1) == {Kind.DELIVERED: 1}
        assert len(server.get("/instances")) == 2
    for name in ("server-elsewhere", "server-expired"):
        with orthanc(**with_tls(name)) as server, before(server, name) as front:
            found["HTTPS"][name] = result(f"{front}/dicom-web", 0)
            found["DIMSE"][name] = result("", server.dicom_port)
    for name, results in found.items():
        print(f"S8: {name} {results}")
        assert results.pop("right certificates") == "accepted"
        assert set(results.values()) == {"refused"}
        assert len(results) == 6


def test_s8_a_password_over_https_needs_no_client_certificate(network, pki, tmp_path):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pki.path("server.both"))
    with orthanc(user=("mla", "right")) as server, tls_front(server.http_port, context) as url:

        def echo(ca: str, credentials: Credentials) -> str:
            settings = site(tmp_path, f"{url}/dicom-web", timeout_s=3.0, ca_file=pki.path(f"{ca}.pem"))
            try:
                make_peer(settings, credentials).echo()
            except PacsError as error:
                return error.code
            return "accepted"

        right = Credentials("mla", "right")
        found = [echo("authority", right), echo("other-authority", right), echo("authority", Credentials())]
        settings = site(tmp_path, server.dicomweb_url)
        (step,) = check_pacs(make_peer(settings, Credentials("mla", "expired")))
    print(f"S8: HTTPS with a password: right {found[0]}, other authority {found[1]}, no password {found[2]}")
    assert found == ["accepted", "TLS", "CREDENTIALS_REFUSED"]
    assert (step.name, step.passed, step.code) == ("connect", False, "CREDENTIALS_REFUSED")
    assert "credentials_file" in step.words


def test_a_connection_that_breaks_after_the_last_byte_is_not_taken_for_one_that_was_refused(
    network, pki, tmp_path
):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pki.path("server.both"))
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            raw = listener.accept()[0]
            in_the_clear = raw.dup()
            theirs, body = context.wrap_socket(raw, server_side=True), b""
            while b"--mla_med_0--" not in body:
                body += theirs.recv(65_536)
            with in_the_clear, theirs:
                in_the_clear.sendall(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")  # a proxy's, beside TLS
                in_the_clear.shutdown(socket.SHUT_WR)
                time.sleep(0.2)

        threading.Thread(target=serve, daemon=True).start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        settings = site(tmp_path, url, timeout_s=3.0, ca_file=pki.path("authority.pem"))
        (outcome,) = make_peer(settings, Credentials()).store([read_letter(drafts.sr(1))])
    assert outcome == Outcome(Kind.UNKNOWN, "TLS")


def test_s8_an_ae_title_that_is_not_on_the_list_is_refused(network, tmp_path):
    def stored(ours: str, theirs: str) -> Kind:
        settings = site(
            tmp_path,
            "",
            protocol="dimse",
            host="127.0.0.1",
            port=server.dicom_port,
            ae_title=ours,
            called_ae_title=theirs,
        )
        return make_peer(settings, Credentials()).store([read_letter(drafts.sr(1))])[0].kind

    modalities = {"us": ["MLA_MED", "127.0.0.1", 104]}
    with orthanc(
        DicomCheckCalledAet=True,
        DicomAlwaysAllowStore=False,
        DicomAlwaysAllowEcho=False,
        DicomModalities=modalities,
    ) as server:
        assert stored("MLA_MED", "ORTHANC") is Kind.DELIVERED
        assert stored("MLA_MED", "OTHER") is Kind.TRANSIENT
        assert stored("INTRUDER", "ORTHANC") is not Kind.DELIVERED


# The self-test


def test_the_self_test_passes_at_orthanc_and_says_what_it_leaves(server, tmp_path):
    steps = list(check_pacs(make_peer(site(tmp_path, server.dicomweb_url), Credentials())))
    assert [step.name for step in steps if not step.passed] == []
    assert steps[-1].code == "LEFT_BEHIND"  # Orthanc's plugin 1.7 has no DELETE
    assert "MLA_MED^SELFTEST" in steps[-1].words
    assert len(server.get("/studies")) == 1


def test_the_self_test_passes_over_dimse(server, tmp_path):
    settings = site(
        tmp_path, "", protocol="dimse", host="127.0.0.1", port=server.dicom_port, called_ae_title="ORTHANC"
    )
    assert [s.name for s in check_pacs(make_peer(settings, Credentials())) if not s.passed] == []


def test_the_self_test_stops_at_what_fails_with_its_code(network, tmp_path):
    (step,) = check_pacs(make_peer(site(tmp_path), Credentials()))
    assert (step.name, step.passed, step.code) == ("connect", False, "CONNECT")


# The verbs


def verb(app: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    code = f"from mla_med.cli_pacs import {app}; {app}()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )


def test_the_verbs_from_a_study_in_the_pacs_to_a_draft_beside_it(server, tmp_path, ledger_url):
    upload(server, 1, range(1, SLICES + 1), StudyDate=datetime.now(UTC).strftime("%Y%m%d"))
    (tmp_path / "mla-med.toml").write_text(
        f'[pacs]\nname = "main"\ndicomweb_url = "{server.dicomweb_url}"\nledger_url = "{ledger_url}"\n'
        'key_file = "site.key"\ninbox = "inbox"\nsettle_s = 0.0\nmax_used = 1.0\nmin_free_bytes = 0\n'
    )
    pulled = verb("pacs", "pull", cwd=tmp_path)
    assert pulled.returncode == 0, pulled.stderr
    state, job, folder = pulled.stdout.split()
    assert state == "READY"
    assert len(list((tmp_path / folder).iterdir())) == SLICES
    (tmp_path / "draft.dcm").write_bytes(drafts.sr(1))
    delivered = verb("pacs", "deliver", "draft.dcm", "--job", job[:8], cwd=tmp_path)
    assert delivered.returncode == 0, delivered.stderr
    assert "1 delivered" in delivered.stdout
    assert {
        c.modality
        for c in WebPeer(site(tmp_path, server.dicomweb_url), Credentials()).count(drafts.study_uid(1))
    } == {"CT", "SR"}
    listed = verb("ledger", "list", cwd=tmp_path)
    assert re.search(rf"{job} +DELIVERED", listed.stdout)
    shown = verb("ledger", "show", job[:6], cwd=tmp_path)
    assert "DELIVERED after 1 tries" in shown.stdout
    everything = pulled.stdout + delivered.stdout + listed.stdout + shown.stdout
    assert "Phantom" not in everything
    assert drafts.study_uid(1) not in everything


def test_a_person_can_retry_and_discard_what_is_parked(network, tmp_path, ledger_url):
    with http_pacs(lambda *_: (400, b"")) as url:
        (tmp_path / "mla-med.toml").write_text(
            f'[pacs]\ndicomweb_url = "{url}"\nledger_url = "{ledger_url}"\nkey_file = "site.key"\n'
        )
        (tmp_path / "draft.dcm").write_bytes(drafts.sr(1))
        done = verb("pacs", "deliver", "draft.dcm", cwd=tmp_path)
    assert (done.returncode, "1 documents are parked" in done.stdout) == (1, True)
    job = done.stdout.split()[1]
    assert verb("ledger", "retry", "--all", cwd=tmp_path).stdout.split() == ["DRAFTED", job]
    gone = verb("ledger", "discard", job[:8], "--reason", "WRONG_PATIENT", cwd=tmp_path)
    assert gone.stdout.split() == ["DISCARDED", job]


def test_no_verb_takes_a_secret():
    from typer.main import get_command

    from mla_med.cli_pacs import ledger, pacs

    names = [p.name for app in (pacs, ledger) for c in get_command(app).commands.values() for p in c.params]
    assert len(names) > 15
    assert [n for n in names if re.search("password|token|user|secret|key|credential", n)] == []


# Settings and logs


def test_an_unknown_key_names_the_nearest(tmp_path):
    (tmp_path / "s.toml").write_text('[pacs]\ndicomweb_ulr = "https://x"\n')
    with pytest.raises(ConfigError, match="Did you mean dicomweb_url"):
        read_settings(tmp_path / "s.toml")


@pytest.mark.parametrize(
    "text",
    [
        'dicomweb_url = "ftp://x"',
        'protocol = "dimse"',
        'dicomweb_url = "https://x"\nport = "104"',
        'dicomweb_url = "https://x"\nae_title = "LONGER_THAN_16_CHARACTERS"',
        'dicomweb_url = "https://x"\ncert_file = "c.pem"',
        'dicomweb_url = "https://x"\nmove_to = "B"',
        'dicomweb_url = "https://x"\nmodalities = "CT"',
        "not toml",
    ],
)
def test_settings_that_cannot_be_are_one_line(tmp_path, text):
    (tmp_path / "s.toml").write_text(f"[pacs]\n{text}\n")
    with pytest.raises(ConfigError) as caught:
        read_settings(tmp_path / "s.toml")
    assert "\n" not in str(caught.value)


def test_relative_places_lie_beside_the_settings_wherever_a_command_is_called_from(tmp_path, monkeypatch):
    site = tmp_path / "site"
    site.mkdir()
    path = site / "s.toml"
    path.write_text('[pacs]\ndicomweb_url = "https://x"\ninbox = "in"\nca_file = "/etc/ca.pem"\n')
    monkeypatch.chdir(tmp_path)
    for given in (path, Path("site/s.toml")):
        settings = read_settings(given, {})
        assert Path(settings.inbox).resolve() == site / "in"
        assert Path(settings.key_file).resolve() == site / "out" / "ledger.key"
        assert Path(settings.ledger_url.removeprefix("sqlite:///")).resolve() == site / "out" / "ledger.db"
        assert (settings.ca_file, settings.cert_file) == ("/etc/ca.pem", "")
    url = "postgresql+psycopg://user@host/ledger"
    assert read_settings(path, {"MLA_MED_LEDGER_URL": url}).ledger_url == url
    path.write_text(f'[pacs]\ndicomweb_url = "https://x"\nledger_url = "{url}"\n')
    assert read_settings(path, {}).ledger_url == url


def test_credentials_come_from_the_environment_or_a_private_file(tmp_path):
    path = tmp_path / "credentials.toml"
    path.write_text('user = "u"\npassword = "secret"\n')
    path.chmod(0o644)
    settings = PacsSettings(dicomweb_url="https://x", credentials_file=str(path))
    with pytest.raises(ConfigError, match="chmod 600"):
        read_credentials(settings, {})
    path.chmod(0o600)
    assert read_credentials(settings, {}) == Credentials("u", "secret")
    assert read_credentials(settings, {"MLA_MED_PACS_TOKEN": "t"}) == Credentials(token="t")
    assert "secret" not in repr(read_credentials(settings, {}))
    path.write_text("secret secret")
    with pytest.raises(ConfigError) as caught:
        read_credentials(settings, {})
    assert "secret" not in str(caught.value)


def test_credentials_do_not_cross_a_network_in_the_clear():
    settings = PacsSettings(dicomweb_url="http://pacs.example.org/dicom-web")
    with pytest.raises(ConfigError) as caught:
        make_peer(settings, Credentials("u", "secret"))
    assert caught.value.code == "CREDENTIALS_EXPOSED"
    make_peer(settings, Credentials())


def test_a_study_that_breaks_the_reader_is_quarantined_and_stops_no_other(server, ledger, clock, tmp_path):
    settings = site(tmp_path, server.dicomweb_url)
    upload(server, 1, range(1, 4))
    upload(server, 2, range(1, 4))
    peer = make_peer(settings, Credentials())

    def call(read, folder):
        if ledger.study_uid(folder.name.removeprefix(".partial-")) == drafts.study_uid(1):
            raise StudyError("too slow", code="READER_TIMEOUT")
        return read(folder)

    list(pull_due(ledger, peer, settings, call))
    clock.now += SETTLE_S
    found = {pulled.job.state: pulled.job.reason for pulled in pull_due(ledger, peer, settings, call)}
    assert found == {JobState.QUARANTINED: "READER_TIMEOUT", JobState.READY: ""}


def test_a_study_whose_reader_was_stopped_with_the_night_is_fetched_by_the_next(
    server, ledger, clock, tmp_path
):
    settings = site(tmp_path, server.dicomweb_url)
    upload(server, 1, range(1, 4))
    peer = make_peer(settings, Credentials())

    def stopped(read, folder):
        raise StudyError("stopped", code="READER_STOPPED")

    list(pull_due(ledger, peer, settings, stopped))
    clock.now += SETTLE_S
    (held,) = pull_due(ledger, peer, settings, stopped)
    assert (held.job.state, held.folder) == (JobState.DISCOVERED, None)
    (taken,) = pull_due(ledger, peer, settings)
    assert taken.job.state is JobState.READY


def test_what_is_quarantined_stays_in_the_drop_folder(ledger, tmp_path):
    drop(tmp_path / "drop" / "a", 1, range(1, 3))
    drop(tmp_path / "drop" / "a", 1, range(3, 5), PatientID="OTHER")
    for _ in range(2):
        list(take_dropped(ledger, tmp_path / "drop", site(tmp_path, settle_s=0.0)))
        assert len(list((tmp_path / "drop" / "a").iterdir())) == 4


def test_a_ledger_key_is_made_once_and_kept(tmp_path):
    settings = PacsSettings(dicomweb_url="https://x", key_file=str(tmp_path / "new" / "site.key"))
    first = read_ledger_secret(settings, {})
    assert read_ledger_secret(settings, {}) == first
    assert read_ledger_secret(settings, {"MLA_MED_LEDGER_KEY": "00" * 32}) == bytes(32)


def test_a_log_says_only_what_is_allowed(caplog):
    with pytest.raises(AssertionError, match="not allowed"):
        log("tried", patient="Canary^Name")
    with caplog.at_level("INFO", "mla_med.events"):
        log("tried", job="0a" * 16, code="Canary^Name", count=3)
    line = json.loads(Redactor().format(caplog.records[-1]))
    assert (line["event"], line["job"], line["code"], line["count"]) == ("tried", "0a" * 16, "?", 3)


def test_what_a_library_says_is_a_place_and_no_words():
    record = logging.LogRecord("pydicom", 30, "/x/valuerep.py", 7, "bad value %s", ("Canary^Name",), None)
    line = Redactor().format(record)
    assert json.loads(line)["place"] == "valuerep.py:7"
    assert "anary" not in line
    try:
        raise ValueError("Canary^Name")
    except ValueError:
        record.exc_info = sys.exc_info()
    line = json.loads(Redactor().format(record))
    assert line["exception"] == "ValueError"
    assert "anary" not in json.dumps(line)


def test_a_pulled_file_opens_as_it_was(server, ledger, clock, tmp_path):
    settings = site(tmp_path, server.dicomweb_url)
    upload(server, 1, range(1, SLICES + 1))
    pulled = pull(ledger, make_peer(settings, Credentials()), settings, clock, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = {d.SOPInstanceUID: d.PixelData for d in map(dcmread, pulled.folder.iterdir())}
    sent = dcmread(io.BytesIO(drafts.to_bytes(drafts.image(1, 3))))
    assert found[sent.SOPInstanceUID] == sent.PixelData
