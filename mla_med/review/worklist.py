"""The worklist: which drafts are shown, in which order, to whom, and whose they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Form, Request
from fastapi.responses import Response
from markupsafe import Markup

from mla_med.report.schema import SCHEMAS
from mla_med.review import words
from mla_med.review.desk import JOB_ID
from mla_med.review.front import Changing, Front, Reader, front_of, is_part
from mla_med.review.nouns import DECIDED_STATES, OPEN_STATES, Filter, Item

PAGE = 50
"""Rows of the worklist."""
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
        "later": urlencode(kept | {"after": _key(items[-1])}) if more else "",
        "is_first": after is None,
        "schemas": SCHEMAS,
        "critical": CRITICAL_CODES,
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


def filter_of(query: Mapping[str, str]) -> Filter:
    """What is asked for in an address; what makes no sense there is left out."""
    said = query.get("q", "").strip()[:64]
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
    rank, _, rest = text.partition("_")
    arrived, _, job_id = rest.partition("_")
    try:
        return (int(rank), float(arrived), job_id) if JOB_ID.fullmatch(job_id) else None
    except ValueError:
        return None


def _key(item: Item) -> str:
    return f"{item.rank}_{item.arrived_at_s!r}_{item.job_id}"


def _as_number(text: str, otherwise: int) -> int:
    return int(text) if text.isdecimal() and len(text) < 10 else otherwise
