"""`mla-med pacs` and `mla-med ledger`: one verb, a few lines.

Prints job ids, states and reason codes; UIDs and patients stay in the sealed rows.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from mla_med.errors import ConfigError, LedgerError, MlaMedError
from mla_med.logs import log

pacs = typer.Typer(
    help="Studies out of a PACS, drafts into it: pull, deliver, and a self-test.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
ledger = typer.Typer(
    help="What became of every study and document.", no_args_is_help=True, pretty_exceptions_enable=False
)
out = Console(highlight=False, soft_wrap=True, markup=False)

SettingsFile = Annotated[
    Path, typer.Option("--settings", envvar="MLA_MED_SETTINGS", help="A TOML file with a section [pacs].")
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
    watch: Watch = False,
    log_level: LogLevel = "warning",
) -> None:
    """Take complete studies into the inbox, a folder for each job. What is not shown to be complete is held,
    and asked for again at the next pull."""
    _start_logging(log_level)
    from mla_med.dicom.apart import ReaderProcess
    from mla_med.pacs.pull import pull_due, take_dropped
    from mla_med.pacs.run import make_peer, open_ledger
    from mla_med.pacs.settings import read_credentials, read_settings

    settings = read_settings(settings_file)
    book, peer = open_ledger(settings), make_peer(settings, read_credentials(settings))
    with ReaderProcess() as reader:
        while True:
            with _kept_going(watch):
                found = (
                    take_dropped(book, drop, settings, reader.call)
                    if drop
                    else pull_due(book, peer, settings, reader.call)
                )
                for one in found:
                    out.print(f"{one.job.state:11} {one.job.id} {one.folder or one.job.reason}")
            if not watch:
                return
            time.sleep(max(1.0, settings.settle_s / 2))


@pacs.command()
def deliver(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders of drafts, or documents (.dcm), to commit first; a folder is one job."),
    ] = None,
    settings_file: SettingsFile = SITE,
    job: Annotated[str | None, typer.Option(help="The READY job that was drafted.")] = None,
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
    if a document is parked and needs a person."""
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
    if metrics_port:
        metrics.serve(metrics_port)
    while True:
        with _kept_going(watch):
            tally = deliver_due(
                book,
                peer,
                settings.name,
                batch=settings.batch,
                workers=settings.workers,
                observe=metrics.observe,
            )
            if tally:
                out.print(", ".join(f"{number} {kind}" for kind, number in sorted(tally.items())))
            book.purge()
            if metrics_file:
                metrics.write(metrics_file)
        if not watch:
            break
        time.sleep(2.0)
    parked = book.depths().get((settings.name, "PARKED"), 0)
    waiting = book.next_due_s(settings.name)
    if waiting is not None:
        out.print(f"Some wait; the next try is at {_time(waiting)}.")
    if parked:
        out.print(f"{parked} documents are parked and need a person: mla-med ledger list --state PARKED")
        raise typer.Exit(1)


@contextmanager
def _kept_going(watch: bool) -> Iterator[None]:
    """Whoever watches outlives a PACS that is down and a disk that is full."""
    try:
        yield
    except MlaMedError as error:
        if not watch:
            raise
        log("failed", level="error", code=error.code)


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
    table = Table(box=None, pad_edge=False)
    for column in ("job", "state", "reason", "images", "changed"):
        table.add_column(column, no_wrap=True)
    book = _open(settings_file)
    for job in book.list_jobs(JobState(state.upper()) if state else None, limit):
        images = f"{job.own_instances} of {job.instances}" if job.instances else ""
        table.add_row(job.id, job.state, job.reason, images, _time(job.updated_at_s))
    out.print(table)


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
    """Try parked documents again, with a new deadline; ask for a quarantined study again."""
    from mla_med.ledger.nouns import JobState

    book = _open(settings_file)
    if every == bool(job):
        raise ConfigError("Which job? Give its id, or --all for every parked one.")
    chosen = book.list_jobs(JobState.PARKED, 10**6) if every else (book.job(job or ""),)
    for one in chosen:
        after = book.retry(one.id)
        out.print(f"{after.state:11} {after.id}")


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
