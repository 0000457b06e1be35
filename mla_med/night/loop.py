"""The day's studies in a PACS -> drafts delivered into it: the night, as one loop.

Three things go on at once: the next studies are pulled (a few ahead of the workers, no more), `slots` of
them are drafted, and what is committed is delivered. Each step is recorded in the ledger before the next,
so a night can be killed, cancelled or started twice at any moment: the next one goes on where it was.

Knows neither Prefect nor Dask: who runs it says how a job id is handed to a worker.
"""

from __future__ import annotations

import json
import queue
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any, Protocol, cast

from mla_med.errors import LedgerError, OutputError, PacsError
from mla_med.ledger.ledger import Ledger
from mla_med.ledger.nouns import JobState, Outcome
from mla_med.logs import log
from mla_med.night.claims import Claims
from mla_med.night.settings import NightSettings, read_night
from mla_med.night.work import AWAY, Drafted
from mla_med.pacs.deliver import deliver_due
from mla_med.pacs.inbox import clear_images, clear_left, review_folder
from mla_med.pacs.peer import Peer
from mla_med.pacs.pull import folder_of, pull_due
from mla_med.pacs.run import make_peer, open_ledger
from mla_med.pacs.settings import PacsSettings, read_credentials, read_settings

PREFETCH = 2
"""Studies that lie ready beyond what the workers have: as many as a slow PACS may be late by."""
PASSES = 4
"""Over the PACS's list, while a study is not counted twice: the first counts, the second takes, and what
grew meanwhile has two more. Later than that it is for the next night."""
FIRST_WAIT_S, MAX_WAIT_S = 30.0, 900.0
"""Of a PACS that does not answer queries, doubled each time; as the ledger does for deliveries."""
TRIES = 3
"""Of a study whose worker died or whose reader was too slow, in one night."""
MOST_DAYS, ACCOUNTS = 31, 100
"""So far back studies are asked for after nights that were not, and so many accounts of nights are looked
through for the last that was."""
FATAL = frozenset(("WORKER_DIED", "DRAFT_TIMEOUT"))
"""What a worker ended of, and with it all that it had under work: nobody knows yet which study it was."""
ELSEWHERE_S = 5.0
"""Between two looks at studies that another machine has claimed: it may be lost, and its claim ends."""
_TICK_S = 0.5


class Handed(Protocol):
    """A study that was handed to a worker."""

    def add_done_callback(self, call: Callable[[Any], None], /) -> Any: ...
    def result(self) -> Drafted: ...


Submit = Callable[[str], Handed]
Call = Callable[..., Any]
Tell = Callable[[str, str, str], None]
"""What happened: "pulled" with a job's id and its state, "delivered" with the number of documents."""


@dataclass(frozen=True, slots=True)
class Site:
    """What a night works with."""

    pacs: PacsSettings
    night: NightSettings
    book: Ledger
    peer: Peer
    claims: Claims
    kept: Path | None = None
    """Where images of delivered drafts stay for the review page; None: nowhere."""


@dataclass(frozen=True, slots=True)
class Night:
    """How it went, in counts and codes."""

    id: str
    began_s: float
    ended_s: float
    drafts: dict[str, int]
    """Drafted, refused, held, failed, ... -> studies of this night."""
    deliveries: dict[str, int]
    """Kind of outcome -> tries."""
    waiting: int
    """Documents that are not delivered yet."""
    codes: tuple[str, ...] = ()
    """What stood in its way: INTAKE_STOPPED, CONNECT, CHECKPOINT_INVALID."""
    stopped: bool = False
    """It was cancelled, or its window ended."""
    unasked: bool = False
    """Nothing of the day could be taken in: the PACS told no list, or there is no room."""
    unread: int = 0
    """So many times the PACS gave no answer about a study in the last pass: they are not here, and nobody
    may ask for them again."""


@contextmanager
def open_site(settings_file: Path, clock: Callable[[], float] = time.time) -> Iterator[Site]:
    pacs, night = read_settings(settings_file), read_night(settings_file)
    book = open_ledger(pacs)
    book.clock = clock
    claims = Claims.open(pacs.ledger_url, clock)
    try:
        peer = make_peer(pacs, read_credentials(pacs))
        yield Site(pacs, night, book, peer, claims, review_folder(settings_file))
    finally:
        claims.close()
        book.close()


def run_night(
    site: Site,
    submit: Submit,
    slots: int,
    *,
    call: Call = lambda read, *args: read(*args),
    stop: threading.Event | None = None,
    tell: Tell = lambda what, job_id, state: None,
    done: Callable[[Drafted], None] = lambda drafted: None,
    observe: Callable[[Outcome, float], None] = lambda outcome, seconds: None,
    pause: Callable[[float], None] | None = None,
) -> Night:
    """`call` runs the reader that looks whether a study is whole; `stop` ends the night after the studies
    under work; `pause` waits, for tests with a clock of their own."""
    return _Shift(site, submit, slots, call, stop or threading.Event(), tell, done, observe, pause).run()


@contextmanager
def by_threads(draft: Callable[[str], Drafted], slots: int) -> Iterator[Submit]:
    """The simplest way to hand studies out: to a function that takes its time."""
    with ThreadPoolExecutor(slots, thread_name_prefix="draft") as pool:
        yield lambda job_id: pool.submit(draft, job_id)


@dataclass
class _Shift:
    site: Site
    submit: Submit
    slots: int
    call: Call
    stop: threading.Event
    tell: Tell
    done: Callable[[Drafted], None]
    observe: Callable[[Outcome, float], None]
    pause: Callable[[float], None] | None

    id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    drafts: Counter[str] = field(default_factory=Counter)
    deliveries: Counter[str] = field(default_factory=Counter)
    codes: dict[str, None] = field(default_factory=dict)
    tries: Counter[str] = field(default_factory=Counter)

    def __post_init__(self):
        self.clock = self.site.book.clock
        self.began_s = self.clock()
        self.until_s = self.began_s + 3600 * self.site.night.window_h
        self.news: queue.Queue[tuple[str, Any]] = queue.Queue()
        self.uncleared: list[str] = []
        self.passed: list[str] = []
        self.room = threading.Semaphore(self.slots + PREFETCH)
        self.committed = threading.Event()
        self.drafting_over = threading.Event()
        self.given_up = threading.Event()  # of this night; `stop` may end the service that has more of them
        self.asked = False
        self.unread = 0

    def run(self) -> Night:
        log("night_began", state=self.id)
        with ThreadPoolExecutor(2, thread_name_prefix="night") as pool:
            delivering = pool.submit(self._deliver)
            pulling = pool.submit(self._pull)
            for thread in (pulling, delivering):
                thread.add_done_callback(lambda ended: self.news.put(("", ended)))
            try:
                self._draft(pulling)
            except BaseException:
                self.given_up.set()  # whatever it was: the other two must not go on alone
                raise
            finally:
                self.drafting_over.set()
                self.committed.set()
            pulling.result()
            delivering.result()
        self._sweep()
        self.site.book.purge()
        if denied := self.site.book.denied(self.site.pacs.name):
            self._say(denied)  # a password that no longer holds: nothing is parked, and somebody must know
        night = Night(
            self.id,
            self.began_s,
            self.clock(),
            dict(self.drafts),
            dict(self.deliveries),
            self._undelivered(),
            tuple(self.codes),
            self._over(),
            not self.asked and not self.stop.is_set(),
            self.unread,
        )
        log(
            "night_ended",
            state=self.id,
            count=sum(self.drafts.values()),
            seconds=night.ended_s - night.began_s,
        )
        return night

    # In

    def _pull(self) -> None:
        wait_s, passes = FIRST_WAIT_S, 0
        pacs = since_last_night(self.site.pacs, Path(self.site.night.records), self.began_s)
        watched = _Watched(self.site.peer)
        peer = cast(Peer, watched)
        while not self._over():
            watched.failures.clear()
            try:
                for pulled in pull_due(self.site.book, peer, pacs, self.call):
                    self.asked = True
                    self.tell("pulled", pulled.job.id, pulled.job.state)
                    if pulled.folder is not None and not self._offer(pulled.job.id):
                        return
                if watched.failures:
                    self.site.peer.echo()
            except (PacsError, OutputError, LedgerError) as error:
                self._say(error.code)
                self._pause(wait_s)
                wait_s = min(MAX_WAIT_S, 2 * wait_s)
                continue
            self._say(*watched.failures)
            self.unread = len(watched.failures)
            wait_s, passes, self.asked = FIRST_WAIT_S, passes + 1, True
            if passes == PASSES or not (watched.failures or self._awaited()):
                return
            self._pause(max(_TICK_S, self.site.pacs.settle_s))

    def _awaited(self) -> bool:
        """Is a study not counted twice, or did one grow in this night? The others have had their look."""
        if self.site.book.job_counts()[JobState.DISCOVERED]:
            return True
        held = self.site.book.list_jobs(JobState.WAITING, 10**6)
        return any(job.counted_at_s >= self.began_s for job in held)

    def _offer(self, job_id: str) -> bool:
        """False if the night ended while there was no room."""
        while not self.room.acquire(timeout=_TICK_S):
            if self._over():
                return False
        self.news.put((job_id, None))
        return True

    # Between

    def _draft(self, pulling: Future[None]) -> None:
        ready, under_work, offered = deque(self._left_over()), set[str](), set[str]()
        suspects, suspect = deque[str](), ""
        while True:
            while ready and len(under_work) < self.slots and suspect not in under_work and not self._over():
                job_id = ready.popleft()
                if job_id not in under_work:
                    under_work.add(job_id)
                    self._hand_out(job_id)
            if suspects and not (ready or under_work or self._over()):
                # one by one, with nothing beside them: what ends a worker costs no other study its tries
                suspect = suspects.popleft()
                under_work.add(suspect)
                self._hand_out(suspect)
            is_idle = not (under_work or ready) and pulling.done() and self.news.empty()
            if is_idle and not self._over():
                ready.extend(self._elsewhere())
                if ready:
                    continue
            if is_idle or (self._over() and not under_work):
                return
            try:
                job_id, handed = self.news.get(timeout=_TICK_S)
            except queue.Empty:
                continue
            if handed is None:
                offered.add(job_id)
                ready.append(job_id)
            elif not job_id:
                handed.result()  # a thread ended: for good, or with what nobody expected
            else:
                under_work.discard(job_id)
                drafted = handed.result()
                if not self._ended(drafted):
                    (suspects if FATAL & set(drafted.codes) else ready).append(job_id)
                elif job_id in offered:
                    offered.remove(job_id)
                    self.room.release()

    def _left_over(self) -> list[str]:
        """Of nights before, the oldest first."""
        people = {s.job_id for s in self.site.claims.standing() if s.state in ("HELD", "FAILED")}
        ready = self.site.book.list_jobs(JobState.READY, 10**6)
        return [job.id for job in reversed(ready) if job.id not in people]

    def _hand_out(self, job_id: str) -> None:
        self.tries[job_id] += 1
        self.submit(job_id).add_done_callback(lambda handed: self.news.put((job_id, handed)))

    def _ended(self, drafted: Drafted) -> bool:
        """False where another try is worth it."""
        if drafted.state == "unable":
            self._say(*drafted.codes)
            if set(drafted.codes) <= AWAY and not self._over():
                self._pause(FIRST_WAIT_S)
                return False
            self.given_up.set()  # the next study would fare no better
        elif drafted.state == "failed" and self.tries[drafted.job_id] < TRIES:
            standing = {s.job_id for s in self.site.claims.standing("FAILED")}
            if drafted.job_id not in standing and not self._over():
                return False
        elif drafted.state == "passed" and not drafted.codes:
            self.passed.append(drafted.job_id)  # is it done there, or only claimed?
            return True
        self._count(drafted)
        return True

    def _count(self, drafted: Drafted) -> None:
        self.drafts[drafted.state] += 1
        self.done(drafted)
        self.uncleared.append(drafted.job_id)
        self.committed.set()

    def _elsewhere(self) -> list[str]:
        """Of the studies that others had claimed, those that are still not drafted: they are tried again, and
        the night waits a while before."""
        ready = set(self._left_over())
        waiting = [job_id for job_id in self.passed if job_id in ready]
        for job_id in self.passed:
            if job_id not in ready:
                self._count(Drafted(job_id, "passed"))
        self.passed.clear()
        if waiting:
            self._pause(ELSEWHERE_S)
            self.tries.subtract(waiting)
        return waiting

    # Out

    def _deliver(self) -> None:
        book, pacs = self.site.book, self.site.pacs
        while True:
            self.committed.clear()
            last = self.drafting_over.is_set()
            try:
                pending = self._undelivered()
                if pending:
                    workers = min(pacs.workers, 1 + pending // pacs.batch)
                    tally = deliver_due(
                        book,
                        self.site.peer,
                        pacs.name,
                        batch=pacs.batch,
                        workers=workers,
                        timeout_s=pacs.timeout_s,
                        observe=self.observe,
                    )
                    self.deliveries.update(tally)
                    if tally["delivered"]:
                        self.tell("delivered", "", str(tally["delivered"]))
                        self._clear_inbox()
                due = book.next_due_s(pacs.name)
                ended = partial(self._is_due, due)
            except (LedgerError, PacsError) as error:
                self._say(error.code)
                due, ended = self.clock() + FIRST_WAIT_S, partial(bool)
            if last and (due is None or self._over()):
                return
            if due is None or (self._over() and not last):
                self.committed.wait(_TICK_S)
            elif due > self.clock():
                self._pause(min(FIRST_WAIT_S, due - self.clock()), ended)

    def _is_due(self, due_s: float | None) -> bool:
        """Before then: something was committed here, or all that waited was sent by another machine."""
        try:
            now_due = self.site.book.next_due_s(self.site.pacs.name)
        except LedgerError:
            return False
        return self.committed.is_set() or now_due is None or (due_s is not None and now_due < due_s)

    def _undelivered(self) -> int:
        depths = self.site.book.depths()
        return sum(depths.get((self.site.pacs.name, state), 0) for state in ("PENDING", "SENDING"))

    def _clear_inbox(self) -> None:
        """Of their images, studies of this night that are over."""
        if self.site.night.keep_images:
            return
        for job_id in list(self.uncleared):
            try:
                state = self.site.book.job(job_id).state
            except LedgerError:
                continue  # a folder of another ledger
            if clear_images(folder_of(self.site.pacs, job_id), state, self.site.kept):
                self.uncleared.remove(job_id)

    def _sweep(self) -> None:
        """The same of nights that ended before their studies did, and what a kill left of a pull."""
        clear_left(Path(self.site.pacs.inbox), ".partial-*")
        for folder in Path(self.site.pacs.inbox).glob(32 * "[0-9a-f]"):
            if folder.name not in self.uncleared:
                self.uncleared.append(folder.name)
        self._clear_inbox()

    # Both

    def _over(self) -> bool:
        return self.stop.is_set() or self.given_up.is_set() or self.clock() >= self.until_s

    def _say(self, *codes: str) -> None:
        for code in codes:
            log("night_hindered", level="warning", code=code)
            self.codes[code] = None

    def _pause(self, seconds: float, ended: Callable[[], bool] = lambda: False) -> None:
        """Until the night is over or `ended`, at the longest."""
        if self.pause is not None:
            self.pause(seconds)
            return
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not self._over() and not ended():
            self.stop.wait(min(left, _TICK_S))


def since_last_night(pacs: PacsSettings, records: Path, now_s: float) -> PacsSettings:
    """With so many days as lie behind the last night that was told of its studies, if these are more: after a
    weekend without nights, or a week without the machine, none of them is passed over."""
    for account in sorted(records.glob("*/night.json"), reverse=True)[:ACCOUNTS]:
        try:
            night = json.loads(account.read_text(encoding="utf-8"))["night"]
            began_s, unasked = float(night["began_s"]), bool(night["unasked"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if not unasked:
            return replace(pacs, days=max(pacs.days, min(MOST_DAYS, ceil((now_s - began_s) / 86400) + 1)))
    return pacs


class _Watched:
    """A peer as `pull_due` asks it, which lets no study that fails stop the others: with what failed. Is it
    the study's fault, or does nothing answer any more?"""

    def __init__(self, peer: Peer):
        self._peer = peer
        self.failures: list[str] = []

    def __getattr__(self, name: str) -> Any:
        ask = getattr(self._peer, name)

        def asked(*args: Any) -> Any:
            try:
                return ask(*args)
            except PacsError as error:
                self.failures.append(error.code)
                raise

        return asked
