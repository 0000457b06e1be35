"""Committed documents that are due -> delivered, to be tried again, or parked.

At-least-once delivery of identical bytes under one UID, and nothing is delivered before it was read
back equal: so the effect is exactly once. What may have been sent before is looked for first.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from mla_med.errors import OutputError, PacsError
from mla_med.ledger.failpoints import reach
from mla_med.ledger.ledger import LEASE_S, Ledger
from mla_med.ledger.nouns import Document, DocumentState, Job, Kind, Lease, Outcome
from mla_med.ledger.owners import owner
from mla_med.logs import log
from mla_med.pacs.letter import (
    Letter,
    complaints,
    difference,
    kind_of,
    place_of,
    predecessors_of,
    read_letter,
    work_of,
)
from mla_med.pacs.peer import Answer, Peer

Tally = Counter[str]
"""Kind of outcome -> documents."""


def commit_documents(
    ledger: Ledger,
    contents: Sequence[bytes],
    destination: str,
    *,
    job_id: str | None = None,
    validate: str = "warn",
    withheld: bool = False,
    predecessors: Sequence[str] | None = None,
) -> Job:
    """Final bytes of one study's documents into the outbox, once and for all. PacsError with the reason if
    one of them must not leave; then none does. A revision takes the place of what was not sent yet.
    `withheld` and `predecessors`: see Ledger.commit; None: whatever the documents themselves name."""
    letters = [read_letter(content) for content in contents]
    if len({letter.study_uid for letter in letters}) != 1:
        raise PacsError("The documents are of several studies; commit each study's.", code="SEVERAL_STUDIES")
    for content in contents:
        if found := complaints(content):
            raise PacsError(
                f"A document must not be sent: {', '.join(found)}. Draft the study again.", code=found[0]
            )
        errors = _validator_errors(content) if validate != "off" else None
        if errors:
            log("document_invalid", level="warning", count=errors)
        if validate == "require" and errors != 0:
            raise PacsError(
                "dciodvfy is not installed, and check_with_dciodvfy requires it."
                if errors is None
                else f"dciodvfy finds {errors} errors in a document.",
                code="DOCUMENT_INVALID",
            )
    study_uid, work = work_of(contents[0])
    documents = [Document(kind_of(one.content), one.uid, one.content, place_of(one)) for one in letters]
    work = (*work, "|", *sorted(document.kind for document in documents))
    revises = predecessors is not None or any(map(predecessors_of, contents))
    reach("draft")
    job = ledger.commit(
        study_uid,
        work,
        documents,
        [destination],
        job_id,
        supersede=revises,
        withheld=withheld,
        predecessors=predecessors,
    )
    log("committed", job=job.id, state=job.state, count=len(documents))
    reach("persist")
    return job


def _validator_errors(content: bytes) -> int | None:
    """How many dciodvfy prints; None where it is not installed. Its words name values: they go nowhere."""
    from mla_med.documents.check import has_validator, validator_errors

    try:
        return len(validator_errors(content)) if has_validator() else None
    except OSError as error:
        raise OutputError(
            f"dciodvfy could not be asked of a document: {error.strerror}. Is there space for files that do "
            "not last (TMPDIR)?"
        ) from error


def deliver_due(
    ledger: Ledger,
    peer: Peer,
    destination: str,
    *,
    batch: int = 20,
    workers: int = 4,
    timeout_s: float = 30.0,
    observe: Callable[[Outcome, float], None] = lambda outcome, seconds: None,
) -> Tally:
    """Everything that is due now. `timeout_s`: of the PACS for each answer. `observe`: an outcome and how
    long it took."""
    tally: Tally = Counter()
    # each of a batch may be looked for, sent by itself and read back: a lease that ends before is lost work
    lease_s = LEASE_S + 3 * batch * timeout_s
    lock = threading.Lock()
    denied = ledger.denied(destination)
    ledger.free_dead(destination)

    def work(number: int) -> None:
        while leases := ledger.lease(destination, owner(number), batch, lease_s):
            start = time.monotonic()
            outcomes = deliver(leases, peer)
            recorded = ledger.record(outcomes)
            seconds = (time.monotonic() - start) / len(leases)
            with lock:
                for (lease, outcome), kept in zip(outcomes, recorded, strict=True):
                    tally[outcome.kind if kept else "stale"] += 1
                    observe(outcome, seconds)
                    _say(lease, outcome, kept, seconds)

    if workers == 1:
        work(0)
    else:
        with ThreadPoolExecutor(workers, thread_name_prefix="deliver") as pool:
            for done in [pool.submit(work, number) for number in range(workers)]:
                done.result()
    if (now := ledger.denied(destination)) and now != denied:
        log("denied", level="error", destination=destination, code=now)  # once, however long it lasts
    if parked := ledger.depths().get((destination, DocumentState.PARKED)):
        log("parked", level="error", destination=destination, count=parked)  # the alarm, until somebody acts
    return tally


def _say(lease: Lease, outcome: Outcome, kept: bool, seconds: float) -> None:
    log(
        "tried" if kept else "stale",
        level="info" if outcome.kind is Kind.DELIVERED else "warning",
        job=lease.job_id,
        document=lease.document_id,
        destination=lease.destination,
        outcome=outcome.kind,
        code=outcome.reason,
        attempt=lease.attempt,
        seconds=round(seconds, 3),
    )


def deliver(leases: Sequence[Lease], peer: Peer) -> list[tuple[Lease, Outcome]]:
    """One try of each. Nothing is recorded here."""
    letters = {lease: read_letter(lease.content) for lease in leases}
    outcomes = _look([lease for lease in leases if lease.attempt > 1], letters, peer)
    rest = [lease for lease in leases if lease not in outcomes]
    if rest:
        answers = peer.store([letters[lease] for lease in rest])
        reach("send")
        outcomes |= dict(zip(rest, answers, strict=True))
        stored = [lease for lease in rest if outcomes[lease].kind is Kind.DELIVERED]
        found = peer.fetch([letters[lease] for lease in stored])
        outcomes |= {
            lease: _read_back(letters[lease], answer) for lease, answer in zip(stored, found, strict=True)
        }
    equal = [lease for lease in leases if outcomes[lease].kind is Kind.DELIVERED]
    confirmed = peer.confirm([letters[lease] for lease in equal]) if equal else []
    outcomes |= dict(zip(equal, confirmed, strict=True))
    reach("verify")
    return [(lease, outcomes[lease]) for lease in leases]


def _read_back(letter: Letter, answer: Answer) -> Outcome:
    """Of what the PACS has just said to have stored."""
    outcome = _compare(letter, answer) or Outcome(Kind.UNKNOWN, "NOT_FOUND")
    if outcome.kind is Kind.TRANSIENT:
        # a connection that was refused since then does not undo it
        return Outcome(Kind.UNKNOWN, f"READ_{outcome.reason}")
    return outcome


def _look(leases: Sequence[Lease], letters: dict[Lease, Letter], peer: Peer) -> dict[Lease, Outcome]:
    """Of what was tried before: those that need not, or must not, be sent again."""
    if not leases:
        return {}
    found = peer.fetch([letters[lease] for lease in leases])
    compared = {lease: _compare(letters[lease], answer) for lease, answer in zip(leases, found, strict=True)}
    return {lease: outcome for lease, outcome in compared.items() if outcome is not None}


def _compare(letter: Letter, answer: Answer) -> Outcome | None:
    """None: it is not there."""
    if answer is None or isinstance(answer, Outcome):
        return answer
    try:
        why = difference(letter.content, answer)
    except PacsError as error:
        return Outcome(Kind.UNKNOWN, error.code)
    # Never overwritten: other content under our UID is for a person.
    return Outcome(Kind.PERMANENT, why) if why else Outcome(Kind.DELIVERED)
