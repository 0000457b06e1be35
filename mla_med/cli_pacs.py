"""`mla-med pacs` and `mla-med ledger`: one verb, a few lines.

Prints job ids, states and reason codes; UIDs and patients stay in the sealed rows, and in the folders of
images and drafts, which their owner alone may read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mla_med.console import out
from mla_med.errors import ConfigError, LedgerError, MlaMedError, PacsError
from mla_med.logs import log

if TYPE_CHECKING:
    from mla_med.documents.envelope import Revision
    from mla_med.ledger.ledger import Ledger
    from mla_med.ledger.nouns import Document, Job
    from mla_med.pacs.settings import PacsSettings

pacs = typer.Typer(
    help="Studies out of a PACS, drafts into it: pull, draft, deliver, and a self-test.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
ledger = typer.Typer(
    help="What became of every study and document.", no_args_is_help=True, pretty_exceptions_enable=False
)

SettingsFile = Annotated[
    Path, typer.Option("--settings", envvar="MLA_MED_SETTINGS", help="A TOML file with a section 'pacs'.")
]
Watch = Annotated[bool, typer.Option("--watch", help="Go on until interrupted.")]
LogLevel = Annotated[str, typer.Option("--log", help="debug, info, warning or error; to stderr, as JSON.")]
JobId = Annotated[str, typer.Argument(help="A job's id, or the beginning of it.")]
SITE = Path("mla-med.toml")


@pacs.command()
def check(settings_file: SettingsFile = SITE, log_level: LogLevel = "error") -> None:
    """Try everything with a phantom that is nobody, and remove it where the PACS allows. Exit code 1 if a
    step fails."""
    _start_logging(log_level)
    from mla_med.pacs.check import check_pacs
    from mla_med.pacs.run import make_peer
    from mla_med.pacs.settings import read_credentials, read_settings

    settings = read_settings(settings_file)
    peer = make_peer(settings, read_credentials(settings))
    failed = False
    for step in check_pacs(peer):
        failed = failed or not step.passed
        mark = "ok    " if step.passed else "FAILED"
        out.print(f"{mark} {step.name}: {' '.join(filter(None, (step.code, step.words))) or 'yes'}")
    if failed:
        raise typer.Exit(1)


@pacs.command()
def pull(
    settings_file: SettingsFile = SITE,
    drop: Annotated[
        Path | None, typer.Option(help="Take studies from the folders in here, instead of the PACS.")
    ] = None,
    study: Annotated[
        list[str] | None,
        typer.Option(help="A Study Instance UID, again for each: these alone, however old."),
    ] = None,
    watch: Watch = False,
    log_level: LogLevel = "warning",
) -> None:
    """Take complete studies into the inbox, a folder for each job. What is not shown to be complete is held,
    and asked for again at the next pull."""
    _start_logging(log_level)
    from mla_med.dicom.apart import ReaderProcess
    from mla_med.ledger.ledger import OPEN
    from mla_med.pacs.pull import check_room, pull_due, pull_study, take_dropped
    from mla_med.pacs.run import make_peer, open_ledger
    from mla_med.pacs.settings import read_credentials, read_settings

    shown: set[str] = set()
    said: list[str] = []
    if drop and study:
        raise ConfigError("--study asks the PACS, and --drop does not; give one of them.")
    settings = read_settings(settings_file)
    book, peer = open_ledger(settings), make_peer(settings, read_credentials(settings))
    with ReaderProcess() as reader:
        while True:
            with _kept_going(watch, said):
                if drop:
                    found = take_dropped(book, drop, settings, reader.call)
                elif study:
                    check_room(settings)
                    named = (pull_study(book, peer, settings, uid, reader.call) for uid in study)
                    found = (one for one in named if one is not None)
                else:
                    found = pull_due(book, peer, settings, reader.call)
                for one in found:
                    shown.add(one.job.id)
                    out.print(f"{one.job.state:11} {one.job.id} {one.folder or one.job.reason}")
            if not watch:
                break
            time.sleep(max(1.0, settings.settle_s / 2))
    for known in (book.newest_job(uid) for uid in study or ()):
        if known is None:
            words = f"The PACS has no {' or '.join(settings.modalities)} images of a study that was named."
            raise PacsError(f"{words} Check its UID, and modalities in [pacs].", code="STUDY_NOT_FOUND")
        if known.id not in shown and known.state not in OPEN:
            out.print(f"{known.state:11} {known.id} {known.reason}".rstrip())
    if waiting := sum(book.job_counts()[state] for state in OPEN):
        again = f"pull again, {settings.settle_s:g} s after the first time at the earliest"
        out.print(f"{waiting} not shown to be complete yet; {again}.")


@pacs.command()
def draft(
    to: Annotated[Path, typer.Option("--out", help="For what is drafted, in a folder for each job.")],
    settings_file: SettingsFile = SITE,
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", help="A checkpoint folder; the packaged one by default.")
    ] = None,
    language: Annotated[str, typer.Option(help="Of the reports: en or zh.")] = "en",
    style: Annotated[str, typer.Option(help="Of the reports: prose, itemised, terse, template.")] = "prose",
    formats: Annotated[str, typer.Option("--format", help="As of mla-med draft.")] = "sr,txt,html,json",
    watch: Watch = False,
    log_level: LogLevel = "warning",
) -> None:
    """Draft every READY study of the inbox, and commit its documents (.dcm) to the outbox. Exit code 1 if one
    could not be drafted: it stays READY, and is tried again at the next start."""
    _start_logging(log_level)
    from mla_med.dicom.apart import ReaderProcess
    from mla_med.documents.write import parse_formats
    from mla_med.drafting import Options, packaged_for
    from mla_med.ledger.nouns import JobState
    from mla_med.model.checkpoint import load_checkpoint
    from mla_med.pacs.run import open_ledger
    from mla_med.pacs.settings import read_settings
    from mla_med.report.style import load_style

    settings = read_settings(settings_file)
    book = open_ledger(settings)
    options = Options(style=load_style(style, language), formats=parse_formats(formats))
    if "sr" not in options.formats:  # the one that there always is
        raise ConfigError("Only DICOM documents are delivered; --format needs sr, at least.")
    model = load_checkpoint(checkpoint) if checkpoint else packaged_for
    to.mkdir(parents=True, exist_ok=True, mode=0o700)
    failed: set[str] = set()
    said: list[str] = []
    with ReaderProcess() as reader:
        while True:
            with _kept_going(watch, said):
                ready = book.list_jobs(JobState.READY, 10**6)
                for job in [job for job in reversed(ready) if job.id not in failed]:
                    try:
                        out.print(_draft_job(book, settings, job, to / job.id, model, reader.call, options))
                    except MlaMedError as error:
                        if error.code in ("LEDGER_FULL", "LEDGER_UNREACHABLE"):
                            raise  # the next job would fail of it too
                        failed.add(job.id)
                        log("draft_failed", level="error", job=job.id, code=error.code)
                        out.print(f"{'failed':11} {job.id} {error.code}")
            if not watch:
                break
            time.sleep(2.0)
    if failed:
        raise typer.Exit(1)


def _draft_job(
    book: Ledger, settings: PacsSettings, job: Job, to: Path, model, call: Callable, options
) -> str:
    """A line: what became of it."""
    from dataclasses import replace

    from mla_med.dicom.study import read_studies
    from mla_med.drafting import draft_one
    from mla_med.pacs.deliver import commit_documents
    from mla_med.pacs.letter import read_content
    from mla_med.pacs.pull import folder_of

    earlier = book.predecessor_documents(job.id)
    options = replace(options, revision=_revision_of(earlier, book.generation(job.id)))
    made, files = draft_one(
        call(read_studies, folder_of(settings, job.id)), to, model, call=call, options=options
    )
    contents = [read_content(file) for file in files if file.suffix == ".dcm"]
    validate = settings.check_with_dciodvfy
    after = commit_documents(
        book,
        contents,
        settings.name,
        job_id=job.id,
        validate=validate,
        predecessors=[document.uid for document in earlier],
    )
    reasons = () if made.report else made.gate.reasons
    state = "drafted" if made.report else "refused"
    return " ".join((f"{state:11} {after.id}", str(to), *(reason.code for reason in reasons)))


def _revision_of(earlier: Sequence[Document], number: int) -> Revision | None:
    """What a draft says of the one before it, which may be in the PACS; None where there is none."""
    from mla_med.documents.envelope import Reference, Revision
    from mla_med.pacs.letter import read_place

    places = [(document.uid, *read_place(document.place)) for document in earlier if document.place]
    references = tuple(Reference(sop_class, uid, series) for uid, sop_class, series in places)
    return Revision(None, None, references, number) if references else None


@pacs.command()
def deliver(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders of drafts, or documents (.dcm), to commit first; a folder is one job."),
    ] = None,
    settings_file: SettingsFile = SITE,
    job: Annotated[str | None, typer.Option(help="The READY job that was drafted.")] = None,
    clear_inbox: Annotated[
        bool,
        typer.Option("--clear-inbox", help="Remove the images of what is delivered or will never be."),
    ] = False,
    watch: Watch = False,
    metrics_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Serve Prometheus metrics on 127.0.0.1.")
    ] = None,
    metrics_file: Annotated[
        Path | None, typer.Option(help="Write them for the node exporter's textfile collector.")
    ] = None,
    log_level: LogLevel = "warning",
) -> None:
    """Commit documents to the outbox, and deliver what is due there: stored, read back, compared. Exit code 1
    if a document is parked and needs a person, or the PACS does not let us in."""
    _start_logging(log_level)
    from mla_med.pacs.deliver import commit_documents, deliver_due
    from mla_med.pacs.letter import read_content
    from mla_med.pacs.metrics import Metrics
    from mla_med.pacs.run import make_peer, open_ledger
    from mla_med.pacs.settings import read_credentials, read_settings

    settings = read_settings(settings_file)
    book, peer = open_ledger(settings), make_peer(settings, read_credentials(settings))
    if job and len(paths or ()) != 1:
        raise ConfigError("--job belongs to one draft; give its folder alone.")
    job_id = book.job(job).id if job else None
    for path in paths or ():
        contents = [read_content(file) for file in _documents(path)]
        made = commit_documents(
            book, contents, settings.name, job_id=job_id, validate=settings.check_with_dciodvfy
        )
        out.print(f"{made.state:11} {made.id}")
    metrics = Metrics(book, settings.name)
    said: list[str] = []
    if metrics_port:
        metrics.serve(metrics_port)
    while True:
        with _kept_going(watch, said):
            tally = deliver_due(
                book,
                peer,
                settings.name,
                batch=settings.batch,
                workers=settings.workers,
                timeout_s=settings.timeout_s,
                observe=metrics.observe,
            )
            if tally:
                out.print(", ".join(f"{number} {kind}" for kind, number in sorted(tally.items())))
            book.purge()
            if clear_inbox:
                _clear_inbox(book, settings, settings_file)
            if metrics_file:
                metrics.write(metrics_file)
        if not watch:
            break
        time.sleep(2.0)
    parked = book.depths().get((settings.name, "PARKED"), 0)
    waiting = book.next_due_s(settings.name)
    if waiting is not None:
        out.print(f"Some wait; the next try is at {_time(waiting)}.")
    denied = book.denied(settings.name)
    if denied:
        out.print(
            f"The PACS does not let us in ({denied}); nothing is lost or parked. Mend the credentials or "
            "their rights: what waits goes out by itself then, and at once after: mla-med ledger retry --all"
        )
    if parked:
        out.print(f"{parked} documents are parked and need a person: mla-med ledger list --state PARKED")
    if parked or denied:
        raise typer.Exit(1)


@contextmanager
def _kept_going(watch: bool, said: list[str]) -> Iterator[None]:
    """Whoever watches outlives a PACS that is down and a disk that is full. `said`: the code of the pass
    before, where it failed: at ERROR it is said once."""
    try:
        yield
        said.clear()
    except MlaMedError as error:
        if not watch:
            raise
        log("failed", level="warning" if error.code in said else "error", code=error.code)
        said[:] = [error.code]


def _clear_inbox(book: Ledger, settings: PacsSettings, settings_file: Path) -> None:
    from mla_med.pacs.inbox import clear_images, review_folder

    kept = review_folder(settings_file)
    for folder in Path(settings.inbox).glob(32 * "[0-9a-f]"):
        clear_images(folder, book.job(folder.name).state, kept)


def _documents(path: Path) -> list[Path]:
    if path.is_dir():
        found = sorted(path.glob("*.dcm"))
        if not found:
            raise ConfigError(f"{path} holds no document (*.dcm). Give the folder that draft --out made.")
        return found
    return [path]


@ledger.command(name="list")
def list_(
    settings_file: SettingsFile = SITE,
    state: Annotated[str | None, typer.Option(help="READY, DELIVERED, PARKED, WAITING, ...")] = None,
    limit: Annotated[int, typer.Option(min=1)] = 50,
) -> None:
    """Jobs, the newest first."""
    from mla_med.ledger.nouns import JobState

    if state and state.upper() not in tuple(JobState):
        raise ConfigError(f"No state {state!r}; there are {', '.join(JobState)}.")
    rows = [("job", "state", "changed", "images", "reason")]
    for job in _open(settings_file).list_jobs(JobState(state.upper()) if state else None, limit):
        images = f"{job.own_instances} of {job.instances}" if job.instances else ""
        rows.append((job.id, job.state, _time(job.updated_at_s), images, job.reason))
    # no table of rich's: it cuts ids to the width of a terminal that is none
    for name, now, changed, images, reason in rows:
        out.print(f"{name:32} {now:11} {changed:20} {images:12} {reason}".rstrip())


@ledger.command()
def show(job: JobId, settings_file: SettingsFile = SITE) -> None:
    """One job: its documents and everything that happened."""
    book = _open(settings_file)
    found = book.job(job)
    out.print(f"{found.id} {found.state} {found.reason}".rstrip())
    if found.revises:
        out.print(f"revises {found.revises}")
    for document in book.documents(found.id):
        out.print(
            f"document {document.id} {document.kind} for {document.destination}: {document.state} "
            f"{document.reason} after {document.attempts} tries".replace("  ", " ")
        )
    for event in book.history(found.id):
        what = " ".join(filter(None, (event.event, event.state, event.reason, event.document_id or "")))
        out.print(f"{_time(event.at_s)} {what}")


@ledger.command()
def retry(
    job: Annotated[str | None, typer.Argument(help="A job's id, or the beginning of it.")] = None,
    settings_file: SettingsFile = SITE,
    every: Annotated[bool, typer.Option("--all", help="Every parked job.")] = False,
) -> None:
    """Try parked documents again, with a new deadline; ask for a quarantined study again. With --all a PACS
    that is being spared, or does not let us in, is asked again at the next delivery too."""
    from mla_med.ledger.nouns import JobState

    book = _open(settings_file)
    if every == bool(job):
        raise ConfigError("Which job? Give its id, or --all for every parked one.")
    chosen = book.list_jobs(JobState.PARKED, 10**6) if every else (book.job(job or ""),)
    for one in chosen:
        after = book.retry(one.id)
        out.print(f"{after.state:11} {after.id}")
    for destination in book.ask_again() if every else ():
        out.print(f"{destination} is asked again at the next delivery.")


@ledger.command()
def discard(
    job: JobId,
    reason: Annotated[str, typer.Option(help="A code of your own, such as WRONG_PATIENT; no names.")],
    settings_file: SettingsFile = SITE,
) -> None:
    """Decide that a job's documents are not delivered. Their bytes are erased, what happened stays."""
    if not reason.replace("_", "").isalnum() or not reason.isascii() or len(reason) > 64:
        raise LedgerError("A reason is a code: letters, digits and _, 64 at most.", code="REASON_INVALID")
    book = _open(settings_file)
    after = book.discard(book.job(job).id, reason.upper())
    out.print(f"{after.state:11} {after.id}")


def _open(settings_file: Path):
    from mla_med.pacs.run import open_ledger
    from mla_med.pacs.settings import read_settings

    _start_logging("warning")
    return open_ledger(read_settings(settings_file))


def _start_logging(level: str) -> None:
    from mla_med.logs import LEVELS, start_logging

    if level not in LEVELS:
        raise ConfigError(f"--log is {level!r}; give {', '.join(LEVELS)}.")
    start_logging(level=level)


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
