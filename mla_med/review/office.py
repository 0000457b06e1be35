"""The administrators' room: drift, audit, readers."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import RedirectResponse, Response

from mla_med.report.schema import SCHEMAS
from mla_med.review import words
from mla_med.review.front import Admin, AdminChanging, front_of
from mla_med.review.learning import account_of
from mla_med.review.patients import inert

Before = Annotated[int, Query(ge=0, lt=2**53)]
"""A row of the audit; what no database counts up to is no row."""
router = APIRouter()


@router.get("/drift")
def drift(request: Request, session: Admin, days: int = 90) -> Response:
    front = front_of(request)
    since = front.store.clock() - max(1, min(days, 3650)) * 86_400.0
    account = account_of(front.store.decided(since), front.store.outcomes_of(since_s=since))
    front.store.log(session.name, "DRIFT")
    return front.show(
        "drift.html",
        request,
        account=account,
        days=days,
        named=[(_any_term(s.name, session.language), s) for s in account.by_code],
        weeks=[(week.start, week.share) for week in account.weeks],
        scanners=[(s.name, s) for s in account.by_scanner],
        subgroups=[(s.name, s) for s in account.by_subgroup],
        by_week_and_code=[
            (_any_term(code, session.language), [(week.start, week.share) for week in weeks])
            for code, weeks in account.by_week_and_code.items()
        ],
    )


@router.get("/audit")
def audit(request: Request, session: Admin, who: str = "", job: str = "", before: Before = 0) -> Response:
    front = front_of(request)
    rows = front.store.audit_rows(inert(job)[:32], inert(who)[:64], before, 200)
    front.store.log(session.name, "AUDIT")
    return front.show("audit.html", request, rows=rows, who=who, job=job)


@router.get("/users")
def users(request: Request, _: Admin) -> Response:
    front = front_of(request)
    return front.show("users.html", request, users=front.store.users())


@router.post("/users/disable")
def disable(request: Request, session: AdminChanging, name: Annotated[str, Form()]) -> Response:
    front_of(request).store.disable_user(inert(name), session.name)
    return RedirectResponse("/users", 303)


def _any_term(code: str, language: str) -> str:
    examination = next((key for key, schema in SCHEMAS.items() if code in schema), "")
    return words.term(examination, code, language) if examination else code
