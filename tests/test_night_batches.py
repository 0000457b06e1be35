"""Studies that go through the model together: each gets the draft that it gets alone, or fails alone."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from drafts import study_uid
from fake_pacs import http_pacs
from night_site import write_settings
from phantoms import volume_series

from mla_med.dicom.study import read_study
from mla_med.documents.json import draft_from_json, draft_to_json
from mla_med.drafting import draft_study, draft_together, place_study, write_placed
from mla_med.errors import ConfigError, LedgerError, StudyError
from mla_med.ledger.nouns import JobState
from mla_med.looking import see, see_together
from mla_med.model.seen import of_patients
from mla_med.night.batches import Batches
from mla_med.night.loop import TRIES, by_threads, open_site
from mla_med.night.run import night_with
from mla_med.night.settings import NightSettings
from mla_med.night.work import Drafted, Drawer, Worker
from mla_med.types import Draft

CLOSE = 1e-4


# What comes together


def in_batches(pieces, most, alone=(), alike=lambda one, other: True):
    """The batches that pieces are worked off in which all come while the first is under work."""
    done, come = [], threading.Event()

    def work(some):
        done.append(list(some))
        come.wait(10)
        return [StudyError(f"{one} is damaged.") if one < 0 else 10 * one for one in some]

    batches = Batches(work, most, alike)

    def bring(piece):
        try:
            return batches(piece, piece in alone)
        except StudyError as error:
            return str(error)

    with ThreadPoolExecutor(len(pieces)) as pool:
        answers = []
        for number, piece in enumerate(pieces):
            answers.append(pool.submit(bring, piece))
            while not done or len(batches._waiting) < number:
                time.sleep(0.001)
        come.set()
        return done, [answer.result(10) for answer in answers]


def test_what_comes_while_others_are_under_work_is_the_next_batch():
    done, answers = in_batches([1, 2, 3, 4, 5], most=3)
    assert done == [[1], [2, 3, 4], [5]]
    assert answers == [10, 20, 30, 40, 50]


def test_a_batch_is_of_one_kind_and_none_overtakes_the_oldest():
    done, _ = in_batches([1, 2, 3, 4, 5, 6], most=3, alike=lambda one, other: one % 2 == other % 2)
    assert done == [[1], [2, 4, 6], [3, 5]]


def test_what_must_be_alone_is_alone():
    done, _ = in_batches([1, 2, 3, 4], most=4, alone=(3,))
    assert done == [[1], [2, 4], [3]]


def test_what_fails_in_a_batch_fails_alone():
    done, answers = in_batches([1, 2, -3, 4], most=4)
    assert done == [[1], [2, -3, 4]]
    assert answers == [10, 20, "-3 is damaged.", 40]


def test_what_nobody_expected_reaches_all_who_wait_for_it():
    def work(some):
        raise ZeroDivisionError

    batches = Batches(work, 2)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            batches(1)


# Drafts


@pytest.fixture(scope="module")
def studies(phantom_series, phantom_study):
    """Two bodies, and one of them with another request, whose words are longer."""
    first, second = read_study(phantom_series), read_study(volume_series(phantom_study("pneumothorax")))
    words = "Dyspnoea and a cough for three weeks, known malignancy. Progress?"
    return [first, second, replace(first, context=replace(first.context, age_years=71, indication=words))]


@pytest.fixture(scope="module")
def placed(studies, checkpoint):
    return [place_study(study, checkpoint) for study in studies]


@pytest.fixture(scope="module")
def alone(placed):
    return [draft_together([one])[0] for one in placed]


def assert_same(one: Draft, other: Draft) -> None:
    """Every word and every key; numbers to CLOSE, which is what the place in a batch may change, and to the
    thousandth to which a draft rounds, up or down."""
    assert_close(values_of(one), values_of(other))


def values_of(draft: Draft) -> dict:
    timeless = replace(draft, provenance=replace(draft.provenance, created_utc=""))
    return json.loads(json.dumps(draft_to_json(timeless)))


def assert_close(ours, theirs) -> None:
    if isinstance(ours, float):
        assert ours == pytest.approx(theirs, rel=CLOSE, abs=CLOSE + 1e-3)
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            assert_close(value, theirs[key])
    elif isinstance(ours, list):
        assert len(ours) == len(theirs)
        for pair in zip(ours, theirs, strict=True):
            assert_close(*pair)
    else:
        assert ours == theirs


def test_three_studies_together_get_the_drafts_that_they_get_alone(placed, alone, studies, checkpoint):
    together = draft_together(placed)
    for one, other in zip(together, alone, strict=True):
        assert one.report.findings
        assert_same(one, other)
    assert together[0].report != together[1].report
    # and alone is what draft_study does
    assert_same(draft_study(studies[1], checkpoint)[0], alone[1])


def test_patients_of_a_batch_are_those_of_batches_of_one(placed, checkpoint):
    contexts = ["40 years", "70 years, M, dyspnoea and fever"]
    prepared = [one.prepared for one in placed[:2]]
    batch = see_together(prepared, contexts, checkpoint.model)
    for row in (0, 1):
        one = see(prepared[row], contexts[row], checkpoint.model)
        for found in (batch.patients[row].outputs, of_patients(batch.outputs, [row])):
            np.testing.assert_allclose(
                found.presence_logits_BF, one.outputs.presence_logits_BF, atol=CLOSE, rtol=0
            )
    assert of_patients(batch.outputs, [0, 1]).size_mm_BF is batch.outputs.size_mm_BF


def test_one_that_is_refused_and_those_that_were_lost_leave_the_others(placed, alone):
    def lost_at(step: str):
        def progress(now: str) -> None:
            if now == step:
                raise LedgerError("Another worker drafts it.", code="STATE_WRONG")

        return replace(placed[1], progress=progress)

    noise = np.random.default_rng(1).random(placed[0].prepared.image_CIJK.shape, np.float32)
    odd = replace(placed[0], prepared=replace(placed[0].prepared, image_CIJK=noise))
    early, late = lost_at("looking at the images"), lost_at("writing the report")
    answers = draft_together([odd, placed[0], early, late, placed[1]])
    assert [type(answer) for answer in answers] == [Draft, Draft, LedgerError, LedgerError, Draft]
    assert [reason.code for reason in answers[0].gate.reasons] == ["FEATURES_UNFAMILIAR"]
    assert_same(answers[1], alone[0])
    assert_same(answers[4], alone[1])


def test_one_whose_words_the_decoder_has_no_room_for_leaves_the_others(placed, alone, checkpoint):
    asked = []

    class Short:
        """Has no room for the words of the second patient, with others or alone."""

        def __getattr__(self, name):
            return getattr(checkpoint.model, name)

        def write(self, fused, outputs, slots):
            asked.append(len(slots))
            if len(asked) in (1, 3):
                raise ConfigError("The report is longer than the decoder.", code="REPORT_TOO_LONG")
            return checkpoint.model.write(fused, outputs, slots)

    short = replace(checkpoint, model=Short())
    answers = draft_together([replace(one, checkpoint=short) for one in placed])
    assert asked == [3, 1, 1, 1]
    assert [type(answer) for answer in answers] == [Draft, ConfigError, Draft]
    assert_same(answers[0], alone[0])
    assert_same(answers[2], alone[2])


def test_a_batch_that_memory_has_no_room_for_is_drafted_one_by_one(placed, alone, checkpoint):
    sizes = []

    class Small:
        """Holds one patient."""

        def __getattr__(self, name):
            return getattr(checkpoint.model, name)

        def encode(self, image_BCIJK, *args):
            sizes.append(len(image_BCIJK))
            if len(image_BCIJK) > 1:
                raise RuntimeError("CUDA out of memory")
            return checkpoint.model.encode(image_BCIJK, *args)

    small = replace(checkpoint, model=Small())
    answers = draft_together([replace(one, checkpoint=small) for one in placed[:2]])
    assert sizes == [2, 1, 1]
    for one, other in zip(answers, alone[:2], strict=True):
        assert_same(one, other)


def test_voxels_that_wait_on_the_disk_give_the_same_documents_and_leave_no_file(
    studies, placed, alone, checkpoint, tmp_path
):
    waiting = place_study(studies[0], checkpoint, spill=tmp_path)
    assert list(tmp_path.iterdir()) == []
    (volume,), (whole,) = waiting.volumes.values(), placed[0].volumes.values()
    assert isinstance(volume.voxels, np.memmap)
    np.testing.assert_array_equal(volume.voxels, whole.voxels)
    for name, one in (("disk", waiting), ("memory", placed[0])):
        write_placed(one, alone[0], tmp_path / name)
    pages = [(tmp_path / name / "draft.html").read_bytes() for name in ("disk", "memory")]
    assert pages[0] == pages[1]
    assert b"data:image/png" in pages[0]


# Jobs


def test_jobs_of_a_batch_are_committed_each_by_itself_and_a_bad_one_fails_alone(studies, alone, tmp_path):
    path = write_settings(tmp_path, "http://127.0.0.1:9", night='batch = 3\nformats = "sr,json"')
    with open_site(path) as here:
        jobs = []
        (tmp_path / "inbox").mkdir()
        for number in range(3):
            study = studies[number] if number < 2 else None
            job = here.book.see(study.study_uid if study else study_uid(3), 4)
            here.book.ready(job.id, 4)
            jobs.append(job.id)
            to = tmp_path / "inbox" / job.id
            if study:
                to.symlink_to(study.series[0].instances[0].path.parent)
            else:
                to.mkdir()
                (to / "1.dcm").write_bytes(bytes(128) + b"DICM and then nothing")
        drawer, sizes = Drawer(here.night), []
        work = drawer._drafts._work

        def counted(placed):
            sizes.append(len(placed))
            voxels = [v.voxels for one in placed for v in one.volumes.values()]
            assert all(isinstance(one, np.memmap) for one in voxels)
            return work(placed)

        drawer._drafts._work = counted
        worker = Worker(here.pacs, here.night, here.book, here.claims, drawer)
        with ThreadPoolExecutor(3) as pool:
            with drawer._drafts._free:  # the model is busy until both are read
                pending = [pool.submit(worker.draft, job_id, False) for job_id in jobs]
                while len(drawer._drafts._waiting) < 2 and not pending[0].done():
                    time.sleep(0.01)
            drafted = [one.result() for one in pending]
        drawer.close()
        assert sizes == [2]
        assert [one.state for one in drafted] == ["drafted", "drafted", "failed"]
        assert [here.book.job(job_id).state for job_id in jobs] == [
            JobState.DRAFTED,
            JobState.DRAFTED,
            JobState.READY,
        ]
        assert [s.job_id for s in here.claims.standing("FAILED")] == [jobs[2]]
        assert sorted(p.name for p in (tmp_path / "drafts").iterdir()) == sorted(jobs[:2])
        for job_id, one in zip(jobs[:2], alone[:2], strict=True):
            values = json.loads((tmp_path / "drafts" / job_id / "draft.json").read_text())
            assert_same(draft_from_json(values), one)


def test_studies_of_different_examinations_are_batched_apart(placed, checkpoint):
    drawer = Drawer(NightSettings(batch=4))
    other = replace(placed[1], checkpoint=replace(checkpoint, name="brain MR"))
    assert drawer._drafts._alike(placed[0], placed[1])
    assert not drawer._drafts._alike(placed[0], other)


def test_a_job_that_was_tried_before_is_alone_in_the_model(tmp_path):
    path = write_settings(tmp_path, "http://127.0.0.1:9")
    with open_site(path) as here:
        job = here.book.see(study_uid(1), 4)
        here.book.ready(job.id, 4)
        asked = []

        def draw(folder, out, keep, revision, alone):
            asked.append(alone)
            raise StudyError("It took too long.", code="READER_TIMEOUT")

        worker = Worker(here.pacs, here.night, here.book, here.claims, draw)
        for _ in range(2):
            assert worker.draft(job.id, False).state == "failed"
        assert asked == [False, True]


def test_what_ends_a_worker_costs_the_studies_beside_it_one_try_alone(network, tmp_path):
    lock, under_work, calls = threading.Lock(), set(), []
    all_four = threading.Barrier(4)

    def draft(job_id: str) -> Drafted:
        with lock:
            under_work.add(job_id)
            calls.append(job_id)
            first = len(calls) <= 4
        if first:
            all_four.wait(30)
        else:
            time.sleep(0.02)
        with lock:
            beside = under_work - {job_id}
            if not first:
                assert not beside
            if not first or job_id == last_of(calls):
                under_work.clear()
        died = first or job_id == bad
        return Drafted(job_id, "failed", ("WORKER_DIED",)) if died else Drafted(job_id, "drafted")

    def last_of(calls):
        return calls[3]

    with http_pacs(lambda method, path, body: (204, b"")) as url:
        path = write_settings(tmp_path, url)
        with open_site(path) as here:
            jobs = []
            for number in range(1, 5):
                jobs.append(here.book.see(study_uid(number), 4).id)
                here.book.ready(jobs[-1], 4)
            bad = jobs[1]
            with by_threads(draft, 4) as submit:
                account = night_with(here, submit, 4)
    assert account.audit.night.drafts == {"drafted": 3, "failed": 1}
    assert {job_id: calls.count(job_id) for job_id in jobs} == {
        job_id: TRIES if job_id == bad else 2 for job_id in jobs
    }
