"""The worklist: which drafts are shown, in which order, to whom, and whose they are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Form, Request
from fastapi.responses import Response
from markupsafe import Markup

from mla_med.errors import ReportError
from mla_med.report.schema import SCHEMAS
from mla_med.review import words
from mla_med.review.desk import JOB_ID
from mla_med.review.front import Changing, Front, NotAllowed, Reader, front_of, is_part
from mla_med.review.nouns import DECIDED_STATES, OPEN_STATES, Filter, Item
from mla_med.review.patients import Patient, inert, is_meant

PAGE = 50
"""Rows of the worklist."""
LOOK_S = 2.0
"""How long a patient is looked for before she is asked whether to go on."""
ROWS_S, KNOWN_PAGES = 10, 64
"""How long rows are shown again to others as they are (their ages are minutes old at best), and how many."""
STATE_CHOICES = {
    "open": OPEN_STATES,
    "new": ("NEW",),
    "decided": DECIDED_STATES,
    "accepted": ("ACCEPTED",),
    "changed": ("CHANGED",),
    "rejected": ("REJECTED",),
    "all": (),
}
RANKS = ("Critical", "Findings", "No findings", "Refused")
CRITICAL_CODES = {code for schema in SCHEMAS.values() for code, kind in schema.items() if kind.critical}
AGES = {"day": (0.0, 86_400.0), "days": (86_400.0, 3 * 86_400.0), "old": (3 * 86_400.0, 0.0)}
router = APIRouter()


@router.get("/")
def worklist(request: Request, session: Reader, seen: str = "") -> Response:
    """The page, or its rows alone for htmx; 204 where nothing has changed since `seen`."""
    front = front_of(request)
    stamp = front.store.stamp()
    if is_part(request) and seen == stamp:
        return Response(status_code=204)
    query = dict(request.query_params)
    wanted, after = filter_of(query), _after(query.get("after", ""))
    items = front.store.page(wanted, after, PAGE + 1)
    more, items = len(items) > PAGE, items[:PAGE]
    kept = {k: query[k] for k in ("state", "examination", "rank", "age", "q") if query.get(k)}
    values: dict[str, Any] = {
        "items": items,
        "stamp": stamp,
        "ranks": RANKS,
        "query": kept,
        "here": urlencode(kept | ({"after": query["after"]} if after else {})),
        "start": urlencode(kept),
        "later": urlencode(kept | {"after": _joined(items[-1].key)}) if more else "",
        "is_first": after is None,
        "schemas": SCHEMAS,
        "critical": CRITICAL_CODES,
        "live": True,
        "patients": {},
    }
    values["rows"] = _rows(front, session.language, values)
    if is_part(request):
        return front.show("part.html", request, **values)
    front.store.log(session.name, "WORKLIST", detail=",".join(kept)[:64])
    counts = front.store.counts()
    return front.show(
        "worklist.html", request, counts=counts, states=list(STATE_CHOICES), ages=list(AGES), **values
    )


def _rows(front: Front, language: str, values: dict[str, Any]) -> Markup:
    """The same for everybody who looks at the same page within a few seconds; whose the rows are is not
    in them."""
    known = front.known_rows
    key = (language, values["here"], values["stamp"], int(front.store.clock() // ROWS_S))
    if (text := known.get(key)) is None:
        present = front.store.present_codes([item.job_id for item in values["items"]])
        text = front.render("rows.html", language, present=present, **values)
        if len(known) >= KNOWN_PAGES:
            known.clear()
        known[key] = text
    return text


@router.post("/names")
def names(request: Request, session: Changing, ids: Annotated[str, Form()] = "") -> Response:
    """Whose the rows are, read now."""
    front = front_of(request)
    asked = [one for one in ids.split(",") if JOB_ID.fullmatch(one)][:PAGE]
    if not front.settings.names_on_worklist:
        asked = []
    patients = {one: front.desk.patient(one) for one in asked if front.store.item(one)}
    front.store.log(session.name, "NAMES", detail=f"{len(patients)} rows")
    return front.show("names.html", request, patients=patients)


@router.post("/find")
def find(
    request: Request,
    session: Changing,
    who: Annotated[str, Form(max_length=96)] = "",
    after: Annotated[str, Form(max_length=96)] = "",
    state: Annotated[str, Form()] = "open",
    examination: Annotated[str, Form()] = "",
    rank: Annotated[str, Form()] = "",
    age: Annotated[str, Form()] = "",
    q: Annotated[str, Form()] = "",
) -> Response:
    """Drafts of a patient. Names and numbers are stored nowhere, so the images of the listed drafts are
    asked, one after the other, as long as LOOK_S. By a form: addresses stand in histories and logs."""
    front = front_of(request)
    if not front.settings.names_on_worklist:
        raise NotAllowed("NAMES_OFF")
    if len(inert(who)) < 2:
        raise ReportError("Give a number, or two letters of a name.", code="WHO_TOO_SHORT")
    query = {"state": state, "examination": examination, "rank": rank, "age": age, "q": q}
    found = _find(front, filter_of(query), _after(after), inert(who))
    front.store.log(session.name, "SEARCHED", detail=f"{found.looked_at} rows, {len(found.patients)} found")
    items = [item for item, _ in found.patients]
    for item in items:
        front.store.log(session.name, "FOUND", item.job_id)
    return front.show(
        "found.html",
        request,
        items=items,
        patients={item.job_id: patient for item, patient in found.patients},
        present=front.store.present_codes([item.job_id for item in items]),
        found=found,
        who=inert(who),
        ranks=RANKS,
        critical=CRITICAL_CODES,
        live=False,
    )


@dataclass(frozen=True, slots=True)
class Found:
    patients: list[tuple[Item, Patient]]
    looked_at: int
    unread: int
    """Whose images are not here, or do not say."""
    later: str
    """Where to go on; empty: everything that is listed was looked at."""


def _find(front: Front, wanted: Filter, after: tuple[int, float, str] | None, who: str) -> Found:
    until = monotonic() + LOOK_S
    patients: list[tuple[Item, Patient]] = []
    looked_at = unread = 0
    while items := front.store.page(wanted, after, PAGE):
        for item in items:
            if looked_at and (monotonic() > until or len(patients) == PAGE):
                return Found(patients, looked_at, unread, _joined(after) if after else "")
            patient = front.desk.patient(item.job_id)
            looked_at += 1
            unread += patient is None
            if patient is not None and is_meant(patient, who):
                patients.append((item, patient))
            after = item.key
    return Found(patients, looked_at, unread, "")


def filter_of(query: Mapping[str, str]) -> Filter:
    """What is asked for in an address; what makes no sense there is left out."""
    said = inert(query.get("q", ""))[:64]
    least, most = AGES.get(query.get("age", ""), (0.0, 0.0))
    rank = _as_number(query.get("rank", ""), -1)
    job_id, scanner = "", ""
    codes: tuple[str, ...] = ()
    if len(said) >= 6 and all(c in "0123456789abcdef" for c in said):
        job_id = said[:32]
    elif said:
        codes = words.codes_named(said)
        scanner = "" if codes else said
    return Filter(
        states=STATE_CHOICES.get(query.get("state", "open"), OPEN_STATES),
        examination=query["examination"] if query.get("examination") in SCHEMAS else "",
        rank=rank if 0 <= rank < len(RANKS) else None,
        min_age_s=least,
        max_age_s=most,
        job_id=job_id,
        scanner=scanner,
        codes=codes,
    )


def _after(text: str) -> tuple[int, float, str] | None:
    parts = re.fullmatch(r"(\d)_(\d{1,12}(?:\.\d{1,12})?)_([0-9a-f]{32})", text)
    return (int(parts[1]), float(parts[2]), parts[3]) if parts else None


def _joined(key: tuple[int, float, str]) -> str:
    return f"{key[0]}_{key[1]!r}_{key[2]}"


def _as_number(text: str, otherwise: int) -> int:
    return int(text) if text.isdecimal() and len(text) < 10 else otherwise
