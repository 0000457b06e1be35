"""The night shift on a real Orthanc: everything once, whatever is killed, stopped, cancelled or down.

The model is a stub (see night_site); the way of a study is the real one, in processes of its own.

    MLA_MED_SLOW=1 python -m pytest tests/test_night.py -k r11 -s        # 1,000 studies instead of 40
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from statistics import median
from unittest.mock import Mock

import drafts
import night_site as stub_site
import psutil
import pytest
from ledgers import default_kind, new_ledger_url
from night_site import ROOT, Stub, documents, ready_job, run, upload, write_settings

from mla_med.dicom.ahead import Ahead
from mla_med.documents.sr import draft_to_sr
from mla_med.errors import CheckpointError, ConfigError, LedgerError, PacsError, StudyError
from mla_med.ledger.ledger import Ledger
from mla_med.ledger.nouns import JobState, Kind, Outcome
from mla_med.ledger.owners import owner
from mla_med.night.alarm import alarm_of
from mla_med.night.audit import Audit, audit_night, write_audit
from mla_med.night.claims import CLAIM_S, MAX_TRIES, Claims
from mla_med.night.cluster import Cluster
from mla_med.night.loop import PASSES, Night, by_threads, open_site, run_night, since_last_night
from mla_med.night.pool import Pool, threads_of
from mla_med.night.run import UNDER_WAY, night_with, release_all, was_cut_off
from mla_med.night.settings import read_night
from mla_med.night.work import Drafted, Worker, release
from mla_med.pacs.deliver import deliver_due
from mla_med.pacs.inbox import clear_images, review_folder
from mla_med.pacs.peer import SeriesCount
from mla_med.pacs.settings import PacsSettings
from mla_med.review.settings import read_review

SLOW = bool(os.environ.get("MLA_MED_SLOW"))
SECRET = bytes(range(32))


@pytest.fixture
def claims(tmp_path):
    url = new_ledger_url(default_kind(), tmp_path)
    Ledger.open(url, SECRET).close()
    now = [1_000_000.0]
    made = Claims.open(url, lambda: now[0])
    made.now = now
    yield made
    made.close()


def states(settings_file) -> Counter:
    with open_site(settings_file) as here:
        return here.book.job_counts()


def uids(numbers) -> list[str]:
    return sorted(drafts.study_uid(number) for number in numbers)


def test_a_night_drafts_and_delivers_the_days_studies_and_the_next_finds_nothing_to_do(server, settings_file):
    upload(server, range(1, 7))
    first = run(settings_file, workers=2)
    assert first.audit.night.drafts == {"drafted": 6}
    assert first.audit.counts == {"DELIVERED": 6}
    assert documents(server) == uids(range(1, 7))
    assert not list((settings_file.parent / "inbox").iterdir())
    models = (settings_file.parent / "workers").read_text().split()
    assert len(models) == len(set(models)) == 2
    second = run(settings_file)
    assert (second.audit.night.drafts, second.audit.rows) == ({}, ())
    assert documents(server) == uids(range(1, 7))


# R10: two workers, one job


def test_r10_one_of_two_workers_gets_a_job(claims):
    first = claims.take("j", owner())
    assert first is not None
    assert claims.take("j", owner()) is None
    assert claims.keep(first)
    assert claims.end(first)
    assert claims.take("j", owner()).fence == first.fence + 1


def test_r10_a_stale_fence_is_refused(claims):
    slow = claims.take("j", "elsewhere 1 1")
    claims.now[0] += CLAIM_S + 1
    fast = claims.take("j", "elsewhere 2 2")
    assert fast.fence == slow.fence + 1
    assert not claims.keep(slow)
    assert not claims.end(slow, "FAILED", "LATE")
    assert claims.keep(fast)
    assert claims.standing()[0].state == "CLAIMED"


def test_the_claim_of_a_process_that_is_gone_ends_at_once_and_that_of_another_host_by_time(claims):
    host = owner().split(" ")[0]
    assert claims.take("here", f"{host} {os.getpid()} 1 0")  # our pid, of a process that was before us
    assert claims.take("here", owner())
    assert claims.take("there", "elsewhere 1 1")
    assert claims.take("there", owner()) is None


def test_a_claim_of_a_clock_that_was_ahead_ends_when_it_is_set_right_and_not_for_a_second(claims):
    claims.now[0] += 365 * 86_400
    assert claims.take("j", "elsewhere 1 1")
    claims.now[0] -= 365 * 86_400
    assert claims.take("j", "elsewhere 1 1")
    claims.now[0] -= 1  # as clocks of two machines differ
    assert claims.take("j", owner()) is None


def test_a_job_that_kills_its_workers_is_left_for_a_person(claims):
    for _ in range(MAX_TRIES):
        assert claims.take("j", "elsewhere 1 1") is not None
        claims.now[0] += CLAIM_S + 1
    assert claims.take("j", owner()) is None
    (standing,) = claims.standing("FAILED")
    assert (standing.code, standing.tries) == ("WORKER_DIED", MAX_TRIES)
    claims.free("j")
    assert claims.take("j", owner()) is not None


def test_r10_a_worker_that_was_too_slow_throws_its_draft_away(tmp_path):
    path = write_settings(tmp_path, "http://127.0.0.1:9")
    later = [0.0]
    with open_site(path, lambda: time.time() + later[0]) as here:
        job_id = ready_job(here, 1, tmp_path)
        fast = Worker(here.pacs, here.night, here.book, here.claims, Stub())
        fast.owner = "elsewhere 2 2"
        answers = []

        def overtaken() -> None:
            later[0] += CLAIM_S + 1
            answers.append(fast.draft(job_id, False))

        slow = Worker(here.pacs, here.night, here.book, here.claims, Stub(before=overtaken))
        slow.owner = "elsewhere 1 1"
        assert slow.draft(job_id, False).state == "passed"
        assert [answer.state for answer in answers] == ["drafted"]
        assert len(here.book.documents(job_id)) == 1
        assert [p.name for p in (tmp_path / "drafts").iterdir()] == [job_id]
        events = Counter(event.event for event in here.book.history(job_id))
        assert events["COMMITTED"] == 1


class Asleep:
    """A part of a worker that stands still at the last of so many calls of one of its functions, while
    `meanwhile` goes on elsewhere."""

    def __init__(self, part, name: str, calls: int, meanwhile, after: bool):
        self._part, self._name, self._left = part, name, calls
        self._meanwhile, self._after = meanwhile, after

    def __getattr__(self, name: str):
        function = getattr(self._part, name)
        if name != self._name:
            return function
        self._left -= 1
        if self._left:
            return function

        def call(*args, **more):
            if not self._after:
                self._meanwhile()
            answer = function(*args, **more)
            if self._after:
                self._meanwhile()
            return answer

        return call


@pytest.mark.parametrize("is_put", [False, True])
def test_r10_what_lies_in_the_folder_of_a_draft_is_what_is_sent_whoever_was_faster(tmp_path, is_put):
    path, later, answers = write_settings(tmp_path, "http://127.0.0.1:9"), [0.0], []
    with open_site(path, lambda: time.time() + later[0]) as here:
        job_id = ready_job(here, 1, tmp_path)
        fast = Worker(here.pacs, here.night, here.book, here.claims, Stub())
        fast.owner = "elsewhere 2 2"

        def meanwhile() -> None:
            later[0] += CLAIM_S + 1
            answers.append(fast.draft(job_id, False).state)

        # the machine is suspended after the last look at the claim, or when the draft is in its place
        claims, book = here.claims, here.book
        if is_put:
            book = Asleep(book, "commit", 1, meanwhile, after=False)
        else:
            claims = Asleep(claims, "keep", 3, meanwhile, after=True)
        slow = Worker(here.pacs, here.night, book, claims, Stub())
        slow.owner = "elsewhere 1 1"
        assert slow.draft(job_id, False).state == "passed"
        assert answers == ["drafted"]
        (document,) = here.book.documents(job_id)
        assert (tmp_path / "drafts" / job_id / "draft.dcm").read_bytes() == here.book.content(document.id)
        assert [p.name for p in (tmp_path / "drafts").iterdir()] == [job_id]


def night_on(settings_file, host: str = "") -> subprocess.Popen:
    """In a process of its own; `host`: on a machine of that name, as far as it can tell."""
    command = [sys.executable, str(ROOT / "tests/night_site.py"), str(settings_file), "1"]
    if host:
        command = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', host, *command]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "STUB_SECONDS": "0.1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)


def test_r10_two_nights_at_once_draft_each_study_once(server, settings_file):
    upload(server, range(1, 9))
    both = [night_on(settings_file) for _ in range(2)]
    try:
        told = [process.communicate(timeout=600) for process in both]
    finally:
        for process in both:
            process.kill()  # none may go on in the PACS of the next test
    assert [process.returncode for process in both] == [0, 0], told
    run(settings_file)  # what one of them pulled while the other was about to leave
    assert documents(server) == uids(range(1, 9))
    assert states(settings_file) == {JobState.DELIVERED: 8}


@pytest.fixture
def shared(server, tmp_path):
    """The settings of two machines: one inbox, one ledger on PostgreSQL."""
    url = new_ledger_url("postgresql", tmp_path)
    return write_settings(tmp_path, server.dicomweb_url, ledger_url=url)


def test_r10_two_machines_on_postgresql_draft_each_study_once(server, shared):
    upload(server, range(1, 9))
    both = [night_on(shared, host) for host in ("one", "two")]
    try:
        told = [process.communicate(timeout=600) for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], told
    drafted = [json.loads(words).get("drafted", 0) for words, _ in told]
    run(shared)
    assert documents(server) == uids(range(1, 9))
    assert states(shared) == {JobState.DELIVERED: 8}
    print(f"two machines drafted {drafted}")
    assert committed_once(shared)


def test_what_a_machine_had_under_work_when_it_was_lost_another_drafts_when_the_claim_has_ended(
    server, shared
):
    upload(server, range(1, 9))
    lost = night_on(shared, "lost")
    while states(shared)[JobState.DELIVERED] == 0:
        assert lost.poll() is None
        time.sleep(0.05)
    for process in (*psutil.Process(lost.pid).children(recursive=True), psutil.Process(lost.pid)):
        process.kill()
    lost.wait(30)
    later = [0.0]

    def pause(seconds: float) -> None:
        time.sleep(0.01)
        later[0] += seconds

    with open_site(shared, lambda: time.time() + later[0]) as here:
        worker = Worker(here.pacs, here.night, here.book, here.claims, Stub())
        with by_threads(lambda job_id: worker.draft(job_id, False), 2) as submit:
            night_with(here, submit, 2, pause=pause)
    print(f"the other machine had waited for {later[0] / 60:.0f} minutes when all was delivered")
    assert documents(server) == uids(range(1, 9))
    assert states(shared) == {JobState.DELIVERED: 8}
    assert committed_once(shared)


def test_a_draft_does_not_wait_for_what_another_machine_sends(server, settings_file, tmp_path, monkeypatch):
    monkeypatch.setattr("mla_med.night.loop.FIRST_WAIT_S", 1000.0)
    deliver = Mock(side_effect=deliver_due)
    monkeypatch.setattr("mla_med.night.loop.deliver_due", deliver)
    stop, sent = threading.Event(), threading.Event()
    with open_site(settings_file) as here, open_site(settings_file) as there:
        worker = Worker(here.pacs, here.night, here.book, here.claims, Stub())
        worker.draft(ready_job(here, 1, tmp_path), False)
        theirs = there.book.lease("main", "elsewhere 1 1", 1, 9000.0)
        ours = ready_job(here, 2, tmp_path)

        def work(job_id: str) -> Drafted:
            time.sleep(1.5)  # it is committed when the night waits for theirs already
            return worker.draft(job_id, False)

        def elsewhere() -> None:
            give_up = time.monotonic() + 60
            while time.monotonic() < give_up and not sent.is_set():
                time.sleep(0.1)
                sent.set() if there.book.job(ours).state == JobState.DELIVERED else None
            there.book.record([(theirs[0], Outcome(Kind.DELIVERED))])
            stopping.start()

        stopping = threading.Timer(60, stop.set)
        thread = threading.Thread(target=elsewhere)
        thread.start()
        with by_threads(work, 1) as submit:
            night = run_night(here, submit, 1, stop=stop)
        thread.join()
        stopping.cancel()
    assert sent.is_set()
    assert deliver.call_count < 10  # and it waits, instead of asking all the time
    assert not night.stopped  # nor did it wait for them when they had been sent
    assert states(settings_file) == {JobState.DELIVERED: 2}


def committed_once(settings_file) -> bool:
    with open_site(settings_file) as here:
        events = [
            Counter(event.event for event in here.book.history(job.id)) for job in here.book.list_jobs()
        ]
    return all(one["COMMITTED"] == one["DELIVERED"] == 1 for one in events)


def test_the_same_night_on_a_dask_cluster_of_two_processes(server, settings_file):
    distributed = pytest.importorskip("distributed", reason="Dask is not installed (the extra flows)")
    upload(server, range(1, 9))
    with distributed.LocalCluster(n_workers=2, threads_per_worker=2, dashboard_address=None) as dask:
        with (
            open_site(settings_file) as here,
            Cluster(dask.scheduler_address, settings_file, work=stub_site.draft_job) as workers,
            by_threads(workers.draft, workers.slots) as submit,
        ):
            account = night_with(here, submit, workers.slots)
        assert workers.slots == 4
        with Cluster(dask.scheduler_address, settings_file, work=stub_site.break_down) as broken:
            # no words: Dask would write them into its log and send them on
            assert broken.draft("j") == Drafted("j", "failed", ("ValueError",))
    assert account.audit.night.drafts == {"drafted": 8}
    assert documents(server) == uids(range(1, 9))
    models = (settings_file.parent / "workers").read_text().split()
    assert len(models) == len(set(models)) <= 2


def test_what_ends_a_worker_of_a_cluster_is_begun_once_for_each_time_it_is_handed_out(tmp_path):
    """Dask itself would begin it again on every other worker, with what is under work there."""
    distributed = pytest.importorskip("distributed", reason="Dask is not installed (the extra flows)")
    path = write_settings(tmp_path, "http://127.0.0.1:9")
    names = ["bad1", "good1", "good2", "good3", "good4"]
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=2, dashboard_address=None) as dask,
        Cluster(dask.scheduler_address, path, work=stub_site.end_worker) as workers,
        by_threads(workers.draft, len(names)) as submit,
    ):
        ended = {name: handed.result() for name, handed in [(name, submit(name)) for name in names]}
    assert ended["bad1"] == Drafted("bad1", "failed", ("WORKER_DIED",))
    lost = [name for name, drafted in ended.items() if drafted.state == "failed"]
    # it, and what that worker did beside it: under work, or done and not fetched yet
    assert len(lost) <= 3
    assert all(ended[name].codes == ("WORKER_DIED",) for name in lost)
    assert Counter((tmp_path / "begun").read_text().split()) == Counter(names)


def test_a_cluster_that_is_not_there_is_one_line(settings_file):
    pytest.importorskip("distributed", reason="Dask is not installed (the extra flows)")
    with pytest.raises(ConfigError, match="No Dask scheduler with a worker answers at nonsense"):
        Cluster("nonsense", settings_file)


# R11: kills


@pytest.mark.parametrize("batch", [1, 4])
def test_r11_three_kills_lose_nothing_and_double_nothing_and_memory_stays_flat(server, tmp_path, batch):
    settings_file = write_settings(tmp_path, server.dicomweb_url, night=f"batch = {batch}")
    count = 1000 if SLOW else 40
    upload(server, range(1, count + 1))
    command = [sys.executable, str(ROOT / "tests/night_site.py"), str(settings_file), "2"]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "STUB_SECONDS": "0.02"}
    shares = iter((0.2, 0.4, 0.6))
    share, kills, memory = next(shares), 0, []
    life = start(command, environment)
    while True:
        process = psutil.Process(life.pid)
        drafted = states(settings_file)
        done = drafted[JobState.DRAFTED] + drafted[JobState.DELIVERED]
        workers = workers_of(process) if life.poll() is None else []
        if kills < 3 and done >= share * count and (workers or kills != 1):
            kills += 1
            share = next(shares, 2.0)
            if kills == 2:  # a worker alone: the night goes on with a new one
                os.kill(workers[0].pid, signal.SIGKILL)
            else:  # the night alone, whose workers finish what they have; then all of it at once
                for one in [process, *(process.children(recursive=True) if kills == 3 else ())]:
                    one.kill()
                life.wait(30)
                life, memory = start(command, environment), []
        elif life.poll() is not None:
            break
        else:
            memory.append(memory_of(life.pid))
            time.sleep(0.5 if SLOW else 0.1)
    assert (life.returncode, kills) == (0, 3), life.stderr.read()
    assert states(settings_file) == {JobState.DELIVERED: count}
    assert documents(server) == uids(range(1, count + 1))
    memory = [one for one in memory if one is not None]
    early, late = memory[len(memory) // 2 : 3 * len(memory) // 4], memory[3 * len(memory) // 4 :]
    ratio = median(late) / median(early)
    print(f"{count} studies, {kills} kills: each once; {median(late) / 1e6:.0f} MB, x{ratio:.3f}")
    # a night of 40 is over before its processes have all they need
    assert ratio < (1.10 if SLOW else 1.5)


def start(command, environment) -> subprocess.Popen:
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment, text=True
    )


def workers_of(night: psutil.Process) -> list[psutil.Process]:
    try:
        children = night.children()
        return [one for one in children if any("mla_med.night.pool" in word for word in one.cmdline())]
    except psutil.NoSuchProcess:
        return []


def memory_of(pid: int) -> int | None:
    """Of the night and its workers, once all of them are there; None while they start or end."""
    try:
        night = psutil.Process(pid)
        workers = workers_of(night)
        return sum(p.memory_info().rss for p in (night, *workers)) if len(workers) == 2 else None
    except psutil.Error:
        return None


# A PACS that is down, a person who says stop


class OneStudy:
    """A PACS of one study, that grows while it is fetched first."""

    commits = False

    def __init__(self, images: int = 0, down: str = ""):
        self.images, self.down, self.asked = images, down, 0

    def find_studies(self, first, modalities):
        self.asked += 1
        self.echo()
        return [drafts.study_uid(1)] if self.images else []

    def count(self, study_uid):
        return [SeriesCount(f"{study_uid}.1", "CT", self.images)]

    def retrieve(self, study_uid, series_uid, write):
        self.images = 5
        for k in range(1, 6):
            write(drafts.to_bytes(drafts.image(1, k)))

    def echo(self):
        if self.down:
            raise PacsError("It does not answer.", code=self.down)


def night_of(path, peer, state: str = "held", stop=None, began_s: float | None = None, **pacs) -> Night:
    """With a clock that goes on as the night waits, and drafts that are none."""
    now = [began_s or time.time()]

    def pause(seconds: float) -> None:
        time.sleep(0.001)
        now[0] += seconds

    with (
        open_site(path, lambda: now[0]) as here,
        by_threads(lambda job_id: Drafted(job_id, state, ("CODE",)), 1) as submit,
    ):
        site = replace(here, peer=peer, pacs=replace(here.pacs, **pacs))
        return run_night(site, submit, 1, stop=stop, pause=pause)


def draw_sr(folder, out, keep, revision, alone=False):
    """A draft of other images where more lie there; it names what it takes the place of."""
    images = sorted(folder.iterdir())
    draft = drafts.draft(1, f"{len(images)} images.")
    series = draft.verdicts[0].series
    some = series.instances[:3] if len(images) > 4 else series.instances
    verdict = replace(draft.verdicts[0], series=replace(series, instances=some))
    out.mkdir(parents=True)
    sr = draft_to_sr(replace(draft, verdicts=(verdict,)), images[0], revision)
    (out / "draft.dcm").write_bytes(drafts.to_bytes(sr))
    return True, (), [out / "draft.dcm"]


@pytest.mark.parametrize("sent_meanwhile", [False, True])
def test_a_held_revision_supersedes_what_was_not_sent_and_is_drafted_anew_after_what_was(
    tmp_path, sent_meanwhile
):
    with open_site(write_settings(tmp_path, "http://127.0.0.1:9")) as here:
        worker = Worker(here.pacs, here.night, here.book, here.claims, draw_sr)
        first = ready_job(here, 1, tmp_path)
        worker.draft(first, True)
        release(here.book, here.claims, here.pacs, here.night, first)
        grown = here.book.see(drafts.study_uid(1), 5)
        here.book.ready(grown.id, 5)
        folder = tmp_path / "inbox" / grown.id
        folder.mkdir(parents=True)
        for k in range(1, 6):
            (folder / f"{k}.dcm").write_bytes(drafts.to_bytes(drafts.image(1, k)))
        assert worker.draft(grown.id, True).state == "held"
        if sent_meanwhile:
            (leased,) = here.book.lease("main", "x")
            here.book.record([(leased, Outcome(Kind.DELIVERED))])
        released = release_all(here)
        states = {job.id: job.state for job in here.book.list_jobs()}
        if sent_meanwhile:
            assert released == []
            assert states == {first: JobState.DELIVERED, grown.id: JobState.READY}
            assert not here.claims.standing("HELD")
            assert worker.draft(grown.id, True).state == "held"  # and now it names what was sent
            assert [job.id for job in release_all(here)] == [grown.id]
        else:
            assert [job.id for job in released] == [grown.id]
            assert states == {first: JobState.SUPERSEDED, grown.id: JobState.DRAFTED}


def test_studies_are_asked_for_since_the_last_night_that_was(tmp_path):
    """A weekend without nights, a broken account, and a night to which the PACS told nothing."""
    pacs, now, records = (
        PacsSettings(dicomweb_url="http://127.0.0.1:9", days=2),
        time.time(),
        tmp_path / "records",
    )
    assert since_last_night(pacs, records, now) == pacs

    def account(name: str, days_ago: float, unasked: bool = False) -> None:
        night = Night(name, now - 86400 * days_ago, now, {}, {}, 0, unasked=unasked)
        write_audit(Audit(night, "main", ()), records)

    account("a", 40)
    assert since_last_night(pacs, records, now).days == 31
    account("b", 4.2)
    assert since_last_night(pacs, records, now).days == 6
    account("c", 1, unasked=True)
    (records / "20991231T000000Z-d").mkdir()
    (records / "20991231T000000Z-d" / "night.json").write_text("{")
    assert since_last_night(pacs, records, now).days == 6
    account("e", 0.9)
    assert since_last_night(pacs, records, now).days == 2


def test_what_grew_while_it_was_fetched_is_looked_at_twice_more_in_the_same_night(tmp_path):
    peer = OneStudy(images=4)
    night = night_of(write_settings(tmp_path, "http://127.0.0.1:9"), peer, settle_s=60.0)
    assert (peer.asked, night.drafts) == (PASSES, {"held": 1})


def test_what_is_held_from_nights_before_is_fetched_once_in_a_night(tmp_path):
    path, peer = write_settings(tmp_path, "http://127.0.0.1:9"), OneStudy(images=6)
    peer.retrieve = lambda *_: None  # nothing ever comes
    night_of(path, peer, settle_s=60.0)
    asked = peer.asked
    night_of(path, peer, began_s=time.time() + 86_400, settle_s=60.0)
    assert peer.asked - asked == 1


def test_a_worker_that_cannot_draft_anything_ends_the_night_and_not_the_service(tmp_path):
    path, stop = write_settings(tmp_path, "http://127.0.0.1:9"), threading.Event()
    with open_site(path) as here:
        ready_job(here, 1, tmp_path)
    night = night_of(path, OneStudy(), "unable", stop)
    assert (night.drafts, night.codes, night.stopped) == ({"unable": 1}, ("CODE",), True)
    assert not stop.is_set()


@pytest.mark.parametrize("code", ["LEDGER_UNREACHABLE", "LEDGER_FULL"])
def test_a_ledger_that_is_away_for_a_while_ends_nothing(tmp_path, code):
    path, now, answers = write_settings(tmp_path, "http://127.0.0.1:9"), [time.time()], ["unable"] * 5

    def pause(seconds: float) -> None:
        time.sleep(0.001)
        now[0] += seconds

    def work(job_id: str) -> Drafted:
        return Drafted(job_id, answers.pop(), (code,)) if answers else Drafted(job_id, "drafted")

    with open_site(path, lambda: now[0]) as here, by_threads(work, 1) as submit:
        for number in (1, 2):
            ready_job(here, number, tmp_path)
        night = run_night(replace(here, peer=OneStudy()), submit, 1, pause=pause)
    assert (night.drafts, night.codes) == ({"drafted": 2}, (code,))
    assert not night.stopped


def test_a_worker_whose_ledger_is_away_says_so_and_drafts_later(tmp_path, monkeypatch):
    with open_site(write_settings(tmp_path, "http://127.0.0.1:9")) as here:
        job = ready_job(here, 1, tmp_path)
        worker = Worker(here.pacs, here.night, here.book, here.claims, Stub())
        away = LedgerError("The server closed the connection.", code="LEDGER_UNREACHABLE")
        with monkeypatch.context() as patch:
            patch.setattr(here.book, "job", Mock(side_effect=away))
            assert worker.draft(job, False) == Drafted(job, "unable", ("LEDGER_UNREACHABLE",))
        with monkeypatch.context() as patch:
            patch.setattr(here.book, "predecessor_documents", Mock(side_effect=away))
            found = worker.draft(job, False)
            assert (found.state, found.codes) == ("unable", ("LEDGER_UNREACHABLE",))
        assert worker.draft(job, False).state == "drafted"


def test_a_study_of_which_the_pacs_says_nothing_is_told_to_people(tmp_path):
    class Mute(OneStudy):
        def count(self, study_uid):
            raise PacsError("It says nonsense.", code="UID_INVALID")

    night = night_of(write_settings(tmp_path, "http://127.0.0.1:9"), Mute(images=4))
    assert (night.unread, night.codes) == (1, ("UID_INVALID",))
    alarm = alarm_of(Audit(night, "main", ()))
    assert alarm["text"] == "mla_med, main: The night could not do its work. UID_INVALID"


def test_people_who_cannot_be_told_do_not_cost_the_account_of_the_night(tmp_path, monkeypatch):
    def unreadable(*_):
        raise ConfigError("The password of the mail cannot be read.", code="SECRET_UNREADABLE")

    monkeypatch.setattr("mla_med.night.run.tell_people", unreadable)
    now = [time.time()]

    def pause(seconds: float) -> None:
        time.sleep(0.001)
        now[0] += seconds

    path = write_settings(tmp_path, "http://127.0.0.1:9")
    with (
        open_site(path, lambda: now[0]) as here,
        by_threads(lambda job: Drafted(job, "drafted"), 1) as submit,
    ):
        account = night_with(replace(here, peer=OneStudy(down="CONNECT")), submit, 1, pause=pause)
    assert alarm_of(account.audit) is not None
    assert (account.folder / "night.json").is_file()
    # it lasted until its window was over
    assert account.folder.parent.joinpath(UNDER_WAY).is_file() == account.audit.night.stopped
    assert not was_cut_off(read_night(path), now[0])


@pytest.mark.parametrize(
    ("down", "pacs", "code"), [("CONNECT", {}, "CONNECT"), ("", {"max_used": 0.0}, "INTAKE_STOPPED")]
)
def test_a_night_that_could_take_nothing_in_is_told_to_people(tmp_path, down, pacs, code):
    path = write_settings(tmp_path, "http://127.0.0.1:9")
    night = night_of(path, OneStudy(down=down), **pacs)
    alarm = alarm_of(Audit(night, "main", ()))
    assert alarm is not None
    assert alarm["text"] == f"mla_med, main: The night could not do its work. {code}"
    stop = threading.Event()
    stop.set()  # by a person, who knows
    assert alarm_of(Audit(night_of(path, OneStudy(down=down), stop=stop, **pacs), "main", ())) is None


def test_a_study_that_is_not_complete_for_a_day_is_told_to_people(tmp_path):
    now = [time.time()]
    with open_site(write_settings(tmp_path, "http://127.0.0.1:9"), lambda: now[0]) as here:
        job = here.book.see(drafts.study_uid(1), 4)
        here.book.hold(job.id, "COUNT_DIFFERS", 3)
        now[0] += 23 * 3600
        assert audit_night(here, Night("n", now[0], now[0], {}, {}, 0)).rows == ()
        now[0] += 2 * 3600
        audit = audit_night(here, Night("n", now[0], now[0], {}, {}, 0))
    assert [(row.state, row.reason) for row in audit.for_people] == [("OVERDUE", "COUNT_DIFFERS")]
    assert alarm_of(audit)["counts"] == {"OVERDUE": 1}


def test_what_a_kill_left_half_made_is_gone_a_day_later(tmp_path):
    path = write_settings(tmp_path, "http://127.0.0.1:9")
    left = [tmp_path / "drafts" / ".making-j-1", tmp_path / "inbox" / ".partial-j"]
    under_work = tmp_path / "drafts" / ".making-j-2"
    for folder in (*left, under_work):
        folder.mkdir(parents=True)
        (folder / "1.dcm").write_bytes(b"x")
    for folder in left:
        os.utime(folder, (time.time() - 90_000,) * 2)
    with open_site(path) as here:
        Worker(here.pacs, here.night, here.book, here.claims, Stub())
    night_of(path, OneStudy())
    assert not any(folder.exists() for folder in left)
    assert under_work.exists()


def test_a_pacs_that_stops_in_mid_night_and_comes_back_an_hour_later_gets_everything(server, settings_file):
    upload(server, range(1, 9))
    later, down_s = [0.0], []
    clock = lambda: time.time() + later[0]  # noqa: E731
    lock = threading.Lock()

    def done(drafted) -> None:
        if not down_s and drafted.state == "drafted":
            server.stop()
            down_s.append(clock())

    def pause(seconds: float) -> None:
        with lock:
            time.sleep(0.01)
            later[0] += seconds
            if server.process is None and clock() > down_s[0] + 3600:
                server.start()

    account = run(settings_file, clock=clock, done=done, pause=pause)
    assert server.process is not None
    assert clock() > down_s[0] + 3600
    assert account.audit.counts == {"DELIVERED": 8}
    assert account.audit.night.codes == ("CONNECT",)
    assert documents(server) == uids(range(1, 9))
    back = account.audit.night.ended_s - (down_s[0] + 3600)
    print(f"down for an hour; all delivered {back / 60:.0f} minutes after it was back")


@pytest.mark.parametrize("batch", [1, 2])
def test_a_cancelled_night_ends_after_the_studies_under_work_and_the_next_goes_on(server, tmp_path, batch):
    settings_file = write_settings(tmp_path, server.dicomweb_url, night=f"batch = {batch}")
    upload(server, range(1, 9))
    stop = threading.Event()
    first = run(settings_file, stop=stop, done=lambda drafted: stop.set())
    assert first.audit.night.stopped
    drafted = first.audit.night.drafts["drafted"]
    assert 1 <= drafted <= 1 + 2 * batch
    assert not [p for p in (settings_file.parent / "drafts").iterdir() if p.name.startswith(".")]
    second = run(settings_file)
    assert second.audit.night.drafts == {"drafted": 8 - drafted}
    assert documents(server) == uids(range(1, 9))


def test_held_drafts_wait_for_a_person(server, settings_file):
    upload(server, range(1, 4))
    account = run(settings_file, hold=True)
    assert account.audit.counts == {"HELD": 3}
    assert states(settings_file) == {JobState.READY: 3}
    assert documents(server) == []
    again = run(settings_file, hold=True)
    assert again.audit.night.drafts == {}
    with open_site(settings_file) as here:
        released = release_all(here)
        assert [job.state for job in released] == [JobState.DRAFTED] * 3
        assert release_all(here) == []
    run(settings_file)
    assert documents(server) == uids(range(1, 4))


# Images, until somebody has looked


def test_images_of_a_delivered_draft_stay_for_the_review_page_where_it_keeps_them(server, tmp_path):
    path = write_settings(tmp_path, server.dicomweb_url, night=f'[review]\nimages = "{tmp_path / "kept"}"')
    upload(server, range(1, 3))
    account = run(path)
    assert account.audit.counts == {"DELIVERED": 2}
    assert not list((tmp_path / "inbox").iterdir())
    kept = {folder.name: len(list(folder.iterdir())) for folder in (tmp_path / "kept").iterdir()}
    assert kept == {row.job_id: 4 for row in account.audit.rows}


def test_the_night_keeps_images_where_the_review_page_looks_for_them(tmp_path, monkeypatch):
    (tmp_path / "site").mkdir()
    path = write_settings(tmp_path / "site", "http://127.0.0.1:9", night='[review]\nimages = "kept"')
    monkeypatch.chdir(tmp_path)
    for given in (path, Path("site/mla-med.toml")):
        assert review_folder(given) == Path(read_review(given).images)
        assert review_folder(given).resolve() == tmp_path / "site" / "kept"


def test_workers_read_the_settings_by_the_name_that_the_night_has(tmp_path, monkeypatch):
    """Behind a link, what lies beside it is not what lies beside its target."""
    path = write_settings(tmp_path, "http://127.0.0.1:9")
    link = tmp_path / "linked" / "mla-med.toml"
    link.parent.mkdir()
    link.symlink_to(path)
    monkeypatch.chdir(link.parent)
    with Pool(Path("mla-med.toml")) as pool:
        assert pool._arguments[0] == str(link)


def test_images_that_cannot_be_kept_stay_in_the_inbox(full_disk, tmp_path):
    folder = tmp_path / ("a" * 32)
    folder.mkdir()
    (folder / "1.dcm").write_bytes(bytes(100_000))
    assert not clear_images(folder, JobState.DELIVERED, full_disk / "kept")
    assert (folder / "1.dcm").exists()
    assert not clear_images(folder, JobState.PARKED, None)
    assert clear_images(folder, JobState.DISCARDED, full_disk / "kept")
    assert not folder.exists()


def test_the_review_page_leaves_images_whose_draft_is_not_on_its_worklist_yet(tmp_path):
    from review_site import Site as ReviewSite

    from mla_med.review.settings import ReviewSettings

    page = ReviewSite(tmp_path, ReviewSettings(images=str(tmp_path / "kept")))
    new, gone = "a" * 32, "b" * 32
    for folder in (page.drafts / new, tmp_path / "kept" / new, tmp_path / "kept" / gone):
        folder.mkdir(parents=True)
    page.desk.clear_images()
    assert [folder.name for folder in (tmp_path / "kept").iterdir()] == [new]


# What cannot be drafted


def test_a_study_that_cannot_be_drafted_is_told_to_a_person_and_stops_no_other(tmp_path):
    path = write_settings(tmp_path, "http://127.0.0.1:9")
    with open_site(path) as here:
        bad, good = ready_job(here, 1, tmp_path), ready_job(here, 2, tmp_path)

        def draw(folder, out, keep, revision, alone):
            if folder.name == bad:
                raise StudyError("Files of Phantom^1 are damaged.", code="DAMAGED_FILE")
            return Stub()(folder, out, keep, revision)

        worker = Worker(here.pacs, here.night, here.book, here.claims, draw)
        assert worker.draft(bad, False).codes == ("DAMAGED_FILE",)
        assert worker.draft(good, False).state == "drafted"
        assert worker.draft(bad, False).state == "passed"
        assert [(s.job_id, s.code) for s in here.claims.standing("FAILED")] == [(bad, "DAMAGED_FILE")]


def test_a_model_that_does_not_load_costs_no_study_a_try(tmp_path):
    path = write_settings(tmp_path, "http://127.0.0.1:9")
    with open_site(path) as here:
        job_id = ready_job(here, 1, tmp_path)

        def draw(folder, out, keep, revision, alone):
            raise CheckpointError("The checkpoint is damaged.", code="CHECKPOINT_INVALID")

        answer = Worker(here.pacs, here.night, here.book, here.claims, draw).draft(job_id, False)
        assert (answer.state, answer.codes) == ("unable", ("CHECKPOINT_INVALID",))
        assert here.claims.standing()[0].tries == 0
        assert here.book.job(job_id).state is JobState.READY


# Reading ahead


def test_what_was_read_ahead_is_not_read_again_and_is_kept_for_one_draft_alone():
    asked = []

    def call(read, *args):
        asked.append((read, args))
        return read(*args)

    ahead = Ahead(call)
    assert ahead._remember(max, 1, 2) == 2
    assert [ahead(max, 1, 2), ahead(max, 1, 2), ahead(min, 1, 2)] == [2, 2, 1]
    assert asked == [(max, (1, 2)), (max, (1, 2)), (min, (1, 2))]


def test_threads_are_shared_out_among_the_workers():
    cores = len(os.sched_getaffinity(0))
    assert threads_of(1)["OMP_NUM_THREADS"] == str(cores)
    assert threads_of(cores)["OMP_NUM_THREADS"] == "1"
    assert threads_of(2 * cores)["MKL_NUM_THREADS"] == "1"
