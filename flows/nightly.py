"""The night shift as a flow: one task a study, in this machine's workers or on a Dask cluster."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from prefect import Task, flow, pause_flow_run, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import FlowPauseTimeout
from prefect.logging import get_run_logger
from prefect.task_runners import ThreadPoolTaskRunner

from flows import page_of, settings_of, stopping, wordless

if TYPE_CHECKING:
    from mla_med.night.loop import Site, Submit
    from mla_med.night.run import Account
    from mla_med.night.work import Drafted

ROWS = 500
"""Of the table of a night; its CSV has them all."""
AT_HAND = 1
"""Tasks that have begun and wait for a worker: a worker should not wait while Prefect begins one."""


@flow(name="nightly", persist_result=False, retries=2, retry_delay_seconds=600)
def nightly_flow(
    settings_file: Path | None = None, hold: bool | None = None, ask_h: float = 0.0
) -> dict[str, int]:
    """Find the day's studies, pull, draft, deliver, account for them. -> State of jobs -> how many. Has no
    time-out: the window of the settings ends a night, and a pause must outlast it.

    `settings_file`: see `settings_of`. `hold`: drafts wait for a person, other than the settings say.
    `ask_h`: with it, the run then pauses for so long, and Resume on Prefect's page releases what it holds;
    else `mla-med night release` does.

    A run that failed is retried, and goes on where it was."""
    logger = get_run_logger()
    settings_file = settings_of(settings_file)
    held: list[str] = []
    with wordless():
        from mla_med.night.alarm import telling_failure
        from mla_med.night.loop import open_site

        with telling_failure(settings_file, "night"), stopping() as stop, open_site(settings_file) as site:
            if hold is not None:
                site = replace(site, night=replace(site.night, hold=hold))
            account = _night(settings_file, site, stop, held)
    counts = account.audit.counts
    logger.info("night %s: %s", account.audit.night.id, counts or "nothing to do")
    _show(account, page_of(settings_file))
    if ask_h and held:
        _ask(settings_file, ask_h, held)
    return counts


def _night(settings_file: Path, site: Site, stop: threading.Event, held: list[str]) -> Account:
    """`held`: is told the jobs whose drafts this night holds."""
    from mla_med.night.run import night_with

    logger = get_run_logger()

    def done(drafted: Drafted) -> None:
        if drafted.state == "held":
            held.append(drafted.job_id)
        logger.info("%s %s %s", drafted.job_id, drafted.state, " ".join(drafted.codes))

    with _workers(settings_file, site, stop) as (submit, slots):
        return night_with(site, submit, slots, stop=stop, done=done)


@contextmanager
def _workers(settings_file: Path, site: Site, stop: threading.Event) -> Iterator[tuple[Submit, int]]:
    """How a job id becomes a task run, and how many there are at once. The task waits here for a worker that
    knows nothing of Prefect: what libraries say there never comes near it, nor need they its server. A task
    whose turn comes after the night was stopped leaves its study as it is."""
    from mla_med.night.run import workers_of
    from mla_med.night.work import Drafted

    with (
        workers_of(settings_file, site.night) as workers,
        ThreadPoolTaskRunner(max_workers=workers.slots + AT_HAND) as runner,
    ):
        turns = threading.Semaphore(workers.slots)

        def in_turn(job_id: str) -> Drafted:
            with turns:
                return Drafted(job_id, "passed") if stop.is_set() else workers.draft(job_id)

        draft = _as_task(in_turn)
        yield lambda job_id: runner.submit(draft, {"job_id": job_id}), workers.slots + AT_HAND


def _as_task(draft: Callable[..., Drafted]) -> Task[..., Drafted]:
    """One study. Tries and the time limit are the night's business, which knows who failed why, and whose
    workers can be killed: Prefect cannot interrupt a thread."""
    return task(
        draft,
        name="draft",
        persist_result=False,
        cache_policy=NO_CACHE,
        tags=["draft"],
    )


def _show(account: Account, page: str) -> None:
    """On Prefect's page: states and codes, the newest first; links to the account and to the review page."""
    rows = [
        {"job": row.job_id, "state": row.state, "reason": row.reason, "draft": row.draft, "tries": row.tries}
        for row in account.audit.rows
    ]
    night = account.audit.night
    create_table_artifact(
        key="night",
        table=rows[-ROWS:] or [{"job": "", "state": "nothing to do"}],
        description=f"Night {night.id}: {account.audit.counts}. The account: {account.folder}",
    )
    people = [f"- `{row.job_id}` {row.state} {row.reason}" for row in account.audit.for_people[:ROWS]]
    create_link_artifact(
        (account.folder.absolute() / "night.html").as_uri(), "The account of the night", key="account"
    )
    if page:
        create_link_artifact(page, "The page on which drafts are reviewed", key="review")
    create_markdown_artifact(
        key="for-a-person",
        markdown="\n".join(["`mla-med ledger show JOB` says what happened.", "", *people])
        if people
        else "Nothing needs a person.",
    )


def _ask(settings_file: Path, ask_h: float, held: list[str]) -> None:
    """The answer is one about these drafts, and not about what another night holds meanwhile."""
    logger = get_run_logger()
    try:
        pause_flow_run(timeout=int(3600 * ask_h))
    except FlowPauseTimeout:
        logger.warning("nobody resumed; the drafts are held: mla-med night release")
        return
    with wordless():
        from mla_med.night.loop import open_site
        from mla_med.night.run import release_all
        from mla_med.pacs.deliver import deliver_due

        with open_site(settings_file) as site:
            released = release_all(site, held)
            deliver_due(site.book, site.peer, site.pacs.name, batch=site.pacs.batch)
    logger.info("%d drafts released", len(released))


if __name__ == "__main__":
    nightly_flow(Path(sys.argv[1]))
