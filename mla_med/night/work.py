"""A READY job's id -> its draft, committed to the outbox or held for a person. What every worker does, in a
thread of this process, in a process of its own, or on another machine.

A worker loads its model once and lets one study through it at a time, or a batch; the next are read
meanwhile, in child processes with limits. Says job ids, states and codes; identifiers stay in folders and
sealed rows.
"""

from __future__ import annotations

import queue
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mla_med.dicom.apart import ReaderProcess
from mla_med.documents.envelope import Reference, Revision
from mla_med.errors import CheckpointError, ConfigError, LedgerError, MlaMedError, OutputError, StudyError
from mla_med.ledger.ledger import Ledger
from mla_med.ledger.nouns import Document, DocumentState, Job, JobState
from mla_med.ledger.owners import owner
from mla_med.logs import log
from mla_med.memory import keep_freed
from mla_med.night.batches import Batches
from mla_med.night.claims import CLAIM_S, Claim, Claims
from mla_med.night.settings import NightSettings, read_night
from mla_med.pacs.deliver import commit_documents
from mla_med.pacs.inbox import clear_left
from mla_med.pacs.letter import predecessors_of, read_content, read_place
from mla_med.pacs.pull import folder_of
from mla_med.pacs.run import open_ledger
from mla_med.pacs.settings import PacsSettings, read_settings

if TYPE_CHECKING:
    from mla_med.drafting import Placed
    from mla_med.types import Draft

PASSING = frozenset(
    ("READER_TIMEOUT", "READER_OUT_OF_MEMORY", "READER_CRASHED", "READER_STOPPED", "OUTPUT_NOT_WRITTEN")
)
"""Failures that a second try may not meet; of the others the same study fails again."""

AWAY = frozenset(("LEDGER_FULL", "LEDGER_UNREACHABLE"))
"""The ledger cannot be asked now, and can soon perhaps."""
_STATES = {
    **dict.fromkeys(("LEDGER_FULL", "LEDGER_UNREACHABLE", "KEY_WRONG"), "unable"),
    # another worker was faster, or more images came meanwhile: the job's state says what to do next
    **dict.fromkeys(("STATE_WRONG", "STUDY_HELD"), "passed"),
}
"""What the ledger refuses -> what became of the draft; for every other code failed, and worth another try."""

SENT = (DocumentState.PENDING, DocumentState.SENDING, DocumentState.PARKED, DocumentState.DELIVERED)

Made = tuple[bool, tuple[str, ...], Sequence[Path]]
"""Was it drafted, and not refused; the reason codes of a refusal; the files."""
Draw = Callable[[Path, Path, Callable[[], None], Revision | None, bool], Made]
"""A study's folder, where the files go, what to call between steps, what it takes the place of, and whether
the model must see nothing beside it -> what was made."""


@dataclass(frozen=True, slots=True)
class Drafted:
    """What became of one job. Small, and nobody's: it may stand in a log or in Prefect."""

    job_id: str
    state: str
    """drafted, refused, held, failed; passed: somebody else's, or not READY any more; unable: the worker
    cannot draft anything, which is no study's fault."""
    codes: tuple[str, ...] = ()
    seconds: float = 0.0


class Worker:
    """Of one process; called by several threads."""

    def __init__(self, pacs: PacsSettings, night: NightSettings, book: Ledger, claims: Claims, draw: Draw):
        self.pacs = pacs
        self.night = night
        self.book = book
        self.claims = claims
        self.draw = draw
        self.owner = owner()
        clear_left(Path(night.out), ".making-*")

    def draft(self, job_id: str, hold: bool) -> Drafted:
        """`hold`: committed by a person, not by us."""
        start = time.monotonic()
        try:
            ready = self.book.job(job_id).state is JobState.READY
            claim = self.claims.take(job_id, self.owner) if ready else None
        except LedgerError as error:
            if error.code not in AWAY:
                raise
            log("draft_refused", level="warning", job=job_id, code=error.code)
            return Drafted(job_id, "unable", (error.code,))
        if claim is None:
            return Drafted(job_id, "passed")
        try:
            state, codes = self._draft(job_id, claim, hold)
        except LedgerError as error:
            state, codes = _STATES.get(error.code, "failed"), (error.code,)
            with suppress(LedgerError):  # it ends by itself, where nobody can be told
                self.claims.end(claim, code=error.code)
            log("draft_refused", level="warning", job=job_id, code=error.code)
        except (ConfigError, CheckpointError) as error:
            state, codes = "unable", (error.code,)
            self.claims.free(job_id)
            log("worker_unable", level="error", job=job_id, code=error.code)
        except MlaMedError as error:
            state, codes = "failed", (error.code,)
            self.claims.end(claim, "" if error.code in PASSING else "FAILED", error.code)
            log("draft_failed", level="error", job=job_id, code=error.code)
        seconds = round(time.monotonic() - start, 3)
        log("drafted", job=job_id, state=state, code=codes[0] if codes else "", seconds=seconds)
        return Drafted(job_id, state, codes, seconds)

    def _draft(self, job_id: str, claim: Claim, hold: bool) -> tuple[str, tuple[str, ...]]:
        """The claim is asked for again between the steps: who lost it throws its draft away. What another
        worker committed meanwhile is not READY any more, and the ledger refuses it."""
        out = Path(self.night.out)
        making = out / f".making-{job_id}-{claim.fence}"
        before = making.with_name(making.name + "-before")

        def keep() -> None:
            if not self.claims.keep(claim):
                raise LedgerError(f"Another worker drafts job {job_id}.", code="STATE_WRONG")

        try:
            out.mkdir(parents=True, exist_ok=True, mode=0o700)
            earlier = self.book.predecessor_documents(job_id)
            revision = revision_of(earlier, self.book.generation(job_id))
            # what was tried before may be what kills the worker: nothing else is to go down with it
            alone = claim.tries > 1
            accepted, codes, files = self.draw(folder_of(self.pacs, job_id), making, keep, revision, alone)
            contents = [read_content(file) for file in files if file.suffix == ".dcm"]
            if not contents:
                raise StudyError("A draft has no DICOM document.", code="NO_DOCUMENT")
            keep()
            with suppress(FileNotFoundError):
                # of a worker that was killed before it committed, or that is faster than we are
                (out / job_id).rename(before)
            making.rename(out / job_id)
            outcome = "DRAFTED" if accepted else " ".join(codes)
            if hold:
                self.claims.end(claim, "HELD", outcome)
                return "held", codes
            commit(self.book, self.pacs, job_id, contents, [document.uid for document in earlier])
            self._agree(job_id, contents, before)
            self.claims.end(claim, "", outcome)
            return "drafted" if accepted else "refused", codes
        except OSError as error:
            raise OutputError(f"A draft could not be written to {out}: {error.strerror}.") from error
        finally:
            for folder in (making, before):
                shutil.rmtree(folder, ignore_errors=True)

    def _agree(self, job_id: str, contents: Sequence[bytes], before: Path) -> None:
        """LedgerError where what is sent is another worker's, who was faster after all; then the folder holds
        that one's draft again, as people must not read what is not sent."""
        documents = self.book.documents(job_id)
        sent = {self.book.content(one.id) for one in documents if one.state in SENT}
        if not sent or sent == set(contents):
            return
        folder = Path(self.night.out) / job_id
        if _documents_in(folder) != sent:
            shutil.rmtree(folder, ignore_errors=True)
            if _documents_in(before) == sent:
                before.rename(folder)
        raise LedgerError(f"Another worker drafted job {job_id}.", code="STATE_WRONG")


def _documents_in(folder: Path) -> set[bytes]:
    return {read_content(file) for file in folder.glob("*.dcm")}


def commit(
    book: Ledger,
    pacs: PacsSettings,
    job_id: str,
    contents: Sequence[bytes],
    predecessors: Sequence[str] | None = None,
) -> Job:
    """`predecessors`: None where the documents themselves say whom they follow."""
    return commit_documents(
        book,
        contents,
        pacs.name,
        job_id=job_id,
        validate=pacs.check_with_dciodvfy,
        predecessors=predecessors,
    )


def revision_of(earlier: Sequence[Document], number: int) -> Revision | None:
    """What a draft says of the one before it, which may be in the PACS; None where there is none."""
    places = [(document.uid, *read_place(document.place)) for document in earlier if document.place]
    references = tuple(Reference(sop_class, uid, series) for uid, sop_class, series in places)
    return Revision(None, None, references, number) if references else None


def release(book: Ledger, claims: Claims, pacs: PacsSettings, night: NightSettings, job_id: str) -> Job:
    """A person let a held draft go out, as it lies in its folder."""
    if job_id not in {held.job_id for held in claims.standing("HELD")}:
        raise LedgerError(f"Job {job_id} is not held. See: mla-med night held.", code="STATE_WRONG")
    folder = Path(night.out) / job_id
    contents = [read_content(file) for file in sorted(folder.glob("*.dcm"))]
    if not contents:
        raise ConfigError(
            f"No document of job {job_id} lies in {night.out}; mla-med night retry drafts anew."
        )
    # what it was drafted to take the place of, which may be nothing: what was not sent then is superseded now
    named = sorted({uid for content in contents for uid in predecessors_of(content)})
    try:
        job = commit(book, pacs, job_id, contents, named)
    except LedgerError as error:
        if error.code == "PREDECESSORS_CHANGED":
            claims.free(job_id)  # the next night drafts it anew, with what was sent meanwhile named
        raise
    claims.free(job_id)
    return job


def draft_job(settings_file: Path, job_id: str, hold: bool) -> Drafted:
    """By this process's worker, made at the first call."""
    return worker_of(settings_file).draft(job_id, hold)


@cache
def _worker(settings_file: Path) -> Worker:
    keep_freed()
    pacs, night = read_settings(settings_file), read_night(settings_file)
    book = open_ledger(pacs)
    return Worker(pacs, night, book, Claims.open(pacs.ledger_url, book.clock), Drawer(night))


_MAKING = threading.Lock()


def worker_of(settings_file: Path) -> Worker:
    with _MAKING:  # a cache alone would make two, of two threads that come first
        return _worker(settings_file)


class Drawer:
    """Draws with the model: loaded once, used by one thread at a time, for up to `batch` studies."""

    def __init__(self, night: NightSettings):
        self.night = night
        # placing, looking and writing use every core that a worker has: two at once would take longer
        # than one after the other
        self._cores = threading.Lock()
        self._loading = threading.Lock()
        # of so many at a time, each started when it is needed, and the one that was used last first
        self._readers: queue.LifoQueue[ReaderProcess | None] = queue.LifoQueue()
        for _ in range(1 + night.ahead):
            self._readers.put(None)
        # another checkpoint is of another examination: another grid, and another network
        self._drafts = Batches(self._draft, night.batch, lambda a, b: a.checkpoint is b.checkpoint)

    def __call__(
        self,
        folder: Path,
        out: Path,
        keep: Callable[[], None],
        revision: Revision | None,
        alone: bool = False,
    ) -> Made:
        from mla_med.drafting import write_placed

        placed = self._placed(folder, out.parent, keep, revision)
        draft = placed.refused or self._drafts(placed, alone)
        with self._cores:
            files = write_placed(placed, draft, out)
        codes = () if draft.report else tuple(reason.code for reason in draft.gate.reasons)
        return draft.report is not None, codes, files

    def _placed(self, folder: Path, out: Path, keep: Callable[[], None], revision: Revision | None):
        """A study, read. With batches many wait for the model: their voxels do so on the disk."""
        from mla_med.dicom.study import only_study, read_studies
        from mla_med.drafting import place_study

        with self._reader(keep) as reader:
            studies = reader.call(read_studies, folder)
            keep()
            checkpoint = self._load(studies)
            options = replace(self._options, revision=revision)
            spill = out if self.night.batch > 1 else None
            study, call = only_study(studies), self._elsewhere(reader.call)
            with self._cores:
                return place_study(study, checkpoint, lambda step: keep(), call, options, spill)

    def _elsewhere(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """While the reader works, this process's cores are for others."""

        def away(work: Callable[..., Any], *args: Any) -> Any:
            self._cores.release()
            try:
                return call(work, *args)
            finally:
                self._cores.acquire()

        return away

    def _draft(self, placed: Sequence[Placed]) -> Sequence[Draft | MlaMedError]:
        from mla_med.drafting import draft_together

        with self._cores:
            return draft_together(placed)

    def _load(self, studies: Sequence[Any]):
        from mla_med.dicom.study import only_study
        from mla_med.drafting import packaged_for

        with self._loading:
            return self._given or packaged_for(only_study(studies))

    @cached_property
    def _given(self):
        """The site's own model; None: the packaged one for each study."""
        from mla_med.model.checkpoint import load_checkpoint

        return load_checkpoint(Path(self.night.checkpoint)) if self.night.checkpoint else None

    @cached_property
    def _options(self):
        from mla_med.documents.write import parse_formats
        from mla_med.drafting import Options
        from mla_med.report.style import load_style

        style = load_style(self.night.style, self.night.language)
        return Options(style=style, formats=parse_formats(self.night.formats))

    @contextmanager
    def _reader(self, keep: Callable[[], None]) -> Iterator[ReaderProcess]:
        """A child for one study at a time: it keeps what it knows of it between calls. Who waits for one
        keeps its claim."""
        while True:
            try:
                reader = self._readers.get(timeout=CLAIM_S / 4) or ReaderProcess()
                break
            except queue.Empty:
                keep()
        try:
            yield reader
        finally:
            self._readers.put(reader)

    def close(self) -> None:
        with suppress(queue.Empty):
            while True:
                if (reader := self._readers.get_nowait()) is not None:
                    reader.close()
