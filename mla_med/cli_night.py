"""`mla-med night` and `mla-med serve`: the night shift by hand and by the clock. One verb, a few lines."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from zoneinfo import ZoneInfo

import typer

from mla_med.cli_pacs import SITE, JobId, LogLevel, SettingsFile, _start_logging
from mla_med.console import err, out
from mla_med.errors import ConfigError, MlaMedError

if TYPE_CHECKING:
    from mla_med.night.run import Account

night = typer.Typer(
    help="The day's studies found, pulled, drafted and delivered, and an account of it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

MetricsPort = Annotated[
    int | None, typer.Option(min=1, max=65535, help="Serve Prometheus metrics on 127.0.0.1.")
]
Hold = Annotated[
    bool | None, typer.Option("--hold/--no-hold", help="Drafts wait for a person; as the settings say.")
]


@night.command()
def run(
    settings_file: SettingsFile = SITE,
    hold: Hold = None,
    metrics_port: MetricsPort = None,
    log_level: LogLevel = "warning",
) -> None:
    """One night, now. Ctrl-C or SIGTERM ends it after the studies under work; run again, it goes on. Exit
    code 1 if something needs a person, or it could not do its work."""
    _start_logging(log_level)
    from mla_med.night.alarm import alarm_of

    account = _night(settings_file, hold, metrics_port, _stop_on_signals())
    if alarm_of(account.audit):
        raise typer.Exit(1)


def _night(settings_file: Path, hold: bool | None, metrics_port: int | None, stop: threading.Event):
    """With a bar in a terminal, and a line at the end."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from mla_med.night.run import whole_night

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with _metrics(settings_file, metrics_port) as metrics, Progress(*columns, console=err) as bar:
        pulled, drafted, sent = (bar.add_task(name, total=0) for name in ("pulled", "drafted", "delivered"))

        def tell(what: str, job_id: str, state: str) -> None:
            if what == "delivered":
                bar.advance(sent, float(state))
                return
            bar.advance(pulled)
            for task in (pulled, drafted, sent) if state == "READY" else (pulled,):
                bar.update(task, total=(bar.tasks[task].total or 0) + 1)

        account = whole_night(
            settings_file,
            hold=hold,
            stop=stop,
            tell=tell,
            done=lambda _: bar.advance(drafted),
            metrics=metrics,
        )
    _print_account(account)
    return account


def _print_account(account: Account) -> None:
    kinds = ", ".join(f"{count} {state}" for state, count in account.audit.counts.items())
    out.print(f"night {account.audit.night.id}: {kinds or 'nothing to do'}")
    out.print(str(account.folder / "night.html"))


@contextmanager
def _metrics(settings_file: Path, port: int | None) -> Iterator:
    if port is None:
        yield None
        return
    from mla_med.night.metrics import NightMetrics
    from mla_med.night.settings import read_night
    from mla_med.pacs.run import open_ledger
    from mla_med.pacs.settings import read_settings

    settings = read_settings(settings_file)
    book = open_ledger(settings)
    metrics = NightMetrics(book, settings.name, Path(read_night(settings_file).records))
    metrics.serve(port)
    yield metrics
    book.close()


def serve(
    settings_file: SettingsFile = SITE,
    metrics_port: MetricsPort = None,
    log_level: LogLevel = "info",
) -> None:
    """Every night, at the times that the settings say, on this machine alone and without a Prefect
    server. Ends on Ctrl-C or SIGTERM, after the studies under work."""
    _start_logging(log_level)
    from mla_med.night.run import was_cut_off, whole_night
    from mla_med.night.schedule import serve as serve_schedule
    from mla_med.night.settings import read_night

    settings, stop = read_night(settings_file), _stop_on_signals()

    def tell(name: str, next_s: float) -> None:
        there = datetime.fromtimestamp(next_s, ZoneInfo(settings.timezone))
        out.print(f"next {name} at {there:%Y-%m-%d %H:%M}, {settings.timezone}")

    with _metrics(settings_file, metrics_port) as metrics:
        work: list[tuple[str, str, Callable[[], object]]] = [
            (
                "night",
                settings.cron,
                lambda: _print_account(whole_night(settings_file, stop=stop, metrics=metrics)),
            )
        ]
        if settings.drift_cron:
            work.append(("drift", settings.drift_cron, lambda: _drift_apart(settings_file)))
        at_once = ("night",) if was_cut_off(settings, time.time()) else ()
        serve_schedule(work, settings.timezone, stop, tell=tell, at_once=at_once)


def _drift_apart(settings_file: Path) -> None:
    """In a process that takes its model with it when it ends."""
    from mla_med.night.alarm import telling_failure

    command = ("-m", "mla_med.cli", "night", "drift", "--settings", str(settings_file))
    code = subprocess.run([sys.executable, *command], check=False).returncode
    if code not in (0, 1):  # with 1 it has told people itself
        with telling_failure(settings_file, "drift check"):
            raise MlaMedError(f"The drift check ended with {code}; its own words stand above.", code="DIED")


@night.command()
def drift(settings_file: SettingsFile = SITE, log_level: LogLevel = "warning") -> None:
    """Send QA phantoms through the PACS and the model, and compare what comes of them with the first time.
    Exit code 1 if something changed. Their studies stay in the PACS: patient MLA_MED^QA."""
    _start_logging(log_level)
    from dataclasses import asdict

    from mla_med.night.drift import drift as read_drift

    with err.status("sending phantoms"):
        found = read_drift(settings_file)
    was = asdict(found.baseline)
    for name, value in asdict(found.now).items():
        now, then = (str(v)[:12] for v in (value, was[name]))
        out.print(f"{name:15} {now:13} {then}")
    out.print(", ".join(found.alarms) or "as it was")
    if found.alarms:
        raise typer.Exit(1)


@night.command()
def held(settings_file: SettingsFile = SITE) -> None:
    """Drafts that wait for a person, with the folder of each; and studies that could not be drafted."""
    _start_logging("warning")
    from mla_med.ledger.nouns import JobState
    from mla_med.night.loop import open_site

    with open_site(settings_file) as site:
        for one in (*site.claims.standing("HELD"), *site.claims.standing("FAILED")):
            if site.book.job(one.job_id).state is JobState.READY:
                out.print(f"{one.state:7} {one.job_id} {one.code} {Path(site.night.out) / one.job_id}")


@night.command()
def release(
    job: Annotated[str | None, typer.Argument(help="A job's id, or the beginning of it.")] = None,
    settings_file: SettingsFile = SITE,
    every: Annotated[bool, typer.Option("--all", help="Every held draft.")] = False,
) -> None:
    """Let held drafts go out, as they lie in their folders: committed now, delivered by the next night or by
    `mla-med pacs deliver`."""
    _start_logging("warning")
    from mla_med.night.loop import open_site
    from mla_med.night.run import release_all
    from mla_med.night.work import release as release_draft

    if every == bool(job):
        raise ConfigError("Which job? Give its id, or --all for every held one.")
    with open_site(settings_file) as site:
        if every:
            released = release_all(site)
        else:
            job_id = site.book.job(job or "").id
            released = [release_draft(site.book, site.claims, site.pacs, site.night, job_id)]
    for after in released:
        out.print(f"{after.state:11} {after.id}")


@night.command()
def retry(job: JobId, settings_file: SettingsFile = SITE) -> None:
    """Draft a study anew that could not be drafted, or whose draft is held: in the next night."""
    _start_logging("warning")
    from mla_med.night.loop import open_site

    with open_site(settings_file) as site:
        found = site.book.job(job)
        site.claims.free(found.id)
        out.print(f"{found.state:11} {found.id}")


@night.command()
def alarm(settings_file: SettingsFile = SITE, log_level: LogLevel = "warning") -> None:
    """Try the webhook and the e-mail: they are told that nothing needs a person. Exit code 1 where one does
    not take it."""
    _start_logging(log_level)
    from mla_med.night.alarm import tell_people
    from mla_med.night.settings import read_night
    from mla_med.pacs.settings import read_settings

    settings = read_night(settings_file)
    if not (settings.webhook_url or settings.mail_host):
        raise ConfigError("[night] names neither webhook_url nor mail_host; there is nobody to tell.")
    name = read_settings(settings_file).name
    if not tell_people(settings, {"text": f"mla_med, {name}: a trial. Nothing needs a person.", "jobs": []}):
        raise MlaMedError(
            "Somebody did not take it; the lines above say who and why. Look at webhook_url, mail_host and "
            "what stands between.",
            code="NOT_TOLD",
        )
    out.print("told")


def _stop_on_signals() -> threading.Event:
    """A second signal ends the process as usual: nothing is lost by that either."""
    stop = threading.Event()

    def on_signal(number: int, frame: object) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    return stop
