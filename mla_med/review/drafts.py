"""One draft: its page, its evidence, what is changed of it, the decision, who changed what."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Request
from fastapi.responses import RedirectResponse, Response
from starlette.exceptions import HTTPException

from mla_med.documents.parts import numbers_of
from mla_med.errors import ReportError
from mla_med.report.schema import schema_of
from mla_med.review import editing, words
from mla_med.review.deciding import REASONS, decide
from mla_med.review.desk import JOB_ID, NoDraft, Sheet
from mla_med.review.editing import Edited
from mla_med.review.front import TURNING, AdminChanging, Changing, Front, Reader, front_of, is_part, reader
from mla_med.review.images import StudyImages, evidence_of
from mla_med.review.nouns import OPEN_STATES, Filter, Session
from mla_med.review.sign_in import ADMIN
from mla_med.types import Change, Draft, Presence

Version = Annotated[int, Form()]
"""That the change was made on."""
Number = Annotated[int, Form()]
"""Of a line, from 1."""
Code = Annotated[str, Form()]
router = APIRouter(prefix="/drafts/{draft_id}")


# To see


@router.get("")
def draft(request: Request, draft_id: str, session: Reader) -> Response:
    front = front_of(request)
    sheet = front.desk.sheet(draft_id)
    front.store.open_draft(draft_id, session.name)
    front.seen[session.token, draft_id, "READ"] = None
    made = front.store.decisions_of(draft_id)
    return front.show(
        "draft.html",
        request,
        patient=front.desk.patient(draft_id),
        has_images=front.desk.images_of(draft_id) is not None,
        has_prior=_has_prior(front, draft_id, sheet.draft),
        decisions=[d for d in made if not d.revoked_at_s],
        reasons=REASONS,
        is_admin=session.role == ADMIN,
        **_report(front.desk.sheet(draft_id)),
    )


@router.get("/report")
def report(request: Request, draft_id: str, session: Reader) -> Response:
    front = front_of(request)
    sheet = front.desk.sheet(draft_id)
    _log_once(front, session, draft_id, "READ")
    return _changed(request, sheet)


@router.get("/evidence.json")
def evidence(request: Request, draft_id: str, session: Reader) -> Response:
    front = front_of(request)
    sheet = front.desk.sheet(draft_id)
    _log_once(front, session, draft_id, "IMAGES")
    data = evidence_of(sheet.now, session.language, f"/drafts/{draft_id}")
    if data["prior"]:
        data["prior"]["at_hand"] = _has_prior(front, draft_id, sheet.draft)
    content = json.dumps(data, ensure_ascii=False, allow_nan=False)
    return Response(TURNING.sub("", content), media_type="application/json")


def _has_prior(front: Front, draft_id: str, draft: Draft) -> bool:
    """Whether the images that it was compared with can be shown."""
    return draft.prior is not None and StudyImages(draft, front.desk.folders_of(draft_id)).has_prior()


@router.get("/versions")
def versions(request: Request, draft_id: str, session: Reader) -> Response:
    front = front_of(request)
    front.desk.sheet(draft_id)
    _log_once(front, session, draft_id, "READ")
    rows = front.store.history(draft_id)
    return front.show("versions.html", request, rows=list(reversed(rows)), draft_id=draft_id)


def image_reader(request: Request) -> Session:
    """Who asks for the addresses of images: one line of the audit a session and draft, not one a slice."""
    session, front = reader(request), front_of(request)
    draft_id = str(request.path_params.get("draft_id", ""))
    if not JOB_ID.fullmatch(draft_id) or front.store.item(draft_id) is None:
        raise NoDraft("There is no such draft.")
    _log_once(front, session, draft_id, "IMAGES")
    return session


def _log_once(front: Front, session: Session, draft_id: str, action: str) -> None:
    """A session and draft."""
    key = (session.token, draft_id, action)
    if key not in front.seen:
        front.store.log(session.name, action, draft_id)
        if len(front.seen) > 10_000:
            front.seen.clear()
        front.seen[key] = None


# To change


def fields_of(
    presence: Annotated[str, Form()] = "",
    place: Annotated[str, Form()] = "",
    size_mm: Annotated[str, Form()] = "",
    count: Annotated[str, Form()] = "",
    change: Annotated[str, Form()] = "",
) -> dict[str, str]:
    """Of a finding, as a form says them."""
    return {"presence": presence, "place": place, "size_mm": size_mm, "count": count, "change": change}


Fields = Annotated[dict[str, str], Depends(fields_of)]


@router.post("/finding")
def finding(
    request: Request,
    draft_id: str,
    version: Version,
    number: Number,
    code: Code,
    fields: Fields,
    session: Changing,
) -> Response:
    def do(edited: Edited) -> Edited:
        editing.check_line(edited, number, code)
        new = editing.finding_from(code, fields, edited.report.examination)
        return editing.change_finding(edited, number, new)

    return _change(request, draft_id, version, session, f"finding {number} {code}", do)


@router.post("/add")
def add(
    request: Request, draft_id: str, version: Version, code: Code, fields: Fields, session: Changing
) -> Response:
    def do(edited: Edited) -> Edited:
        return editing.add_finding(edited, editing.finding_from(code, fields, edited.report.examination))

    return _change(request, draft_id, version, session, f"add {code}", do)


@router.post("/remove")
def remove(
    request: Request, draft_id: str, version: Version, number: Number, code: Code, session: Changing
) -> Response:
    def do(edited: Edited) -> Edited:
        editing.check_line(edited, number, code)
        return editing.remove_finding(edited, number)

    return _change(request, draft_id, version, session, f"remove {code}", do)


@router.post("/sentence")
def sentence(
    request: Request,
    draft_id: str,
    version: Version,
    number: Number,
    session: Changing,
    text: Annotated[str, Form()] = "",
    gone: Annotated[str, Form()] = "",
) -> Response:
    """0: a new sentence; -1: a new one of the impression. A sentence under her hands is not put anew:
    what it changes elsewhere is."""
    if not text.strip() and not gone:  # she may be about to type another one
        raise ReportError("An empty sentence is not saved; × removes it.", code="SENTENCE_EMPTY")

    def do(edited: Edited) -> Edited:
        if number <= 0:
            return editing.add_sentence(edited, text, impression=number < 0)
        return editing.change_sentence(edited, number, text)

    desk = front_of(request).desk
    before = desk.sheet(draft_id).now.report
    sheet = desk.change(draft_id, version, session.name, f"sentence {number}", do)
    after = sheet.now.report
    assert before is not None
    assert after is not None
    in_findings = 0 < number <= len(before.sentences)
    same = number > 0 and len(before.sentences) == len(after.sentences)
    if not same or not (in_findings or len(before.impression) == len(after.impression)):
        response = _changed(request, sheet)
        response.headers["HX-Retarget"], response.headers["HX-Reswap"] = "#report", "outerHTML"
        return response
    what = "sentences" if in_findings else "impression"
    return _changed(request, sheet, part="around.html", what=what)


@router.post("/undo")
def undo(request: Request, draft_id: str, version: Version, session: Changing) -> Response:
    return _changed(request, front_of(request).desk.undo(draft_id, version, session.name))


@router.post("/language")
def report_language(
    request: Request, draft_id: str, version: Version, language: Annotated[str, Form()], session: Changing
) -> Response:
    if language not in words.LANGUAGES:
        raise HTTPException(422)

    def do(edited: Edited) -> Edited:
        return editing.change_language(edited, language, front_of(request).desk.draft(draft_id))

    return _change(request, draft_id, version, session, f"language {language}", do)


def _change(
    request: Request, draft_id: str, version: int, session: Session, what: str, do: Callable[[Edited], Edited]
) -> Response:
    return _changed(request, front_of(request).desk.change(draft_id, version, session.name, what, do))


def _changed(request: Request, sheet: Sheet, part: str = "report.html", what: str = "") -> Response:
    response = front_of(request).show(part, request, what=what, **_report(sheet))
    response.headers["HX-Trigger-After-Settle"] = "review:changed"
    return response


# To decide


@router.post("/decide")
def decide_draft(
    request: Request,
    draft_id: str,
    version: Version,
    verb: Annotated[str, Form()],
    session: Changing,
    reason: Annotated[str, Form()] = "",
    remark: Annotated[str, Form()] = "",
    despite: Annotated[str, Form()] = "",
) -> Response:
    """`despite`: she was told that the checks object. What she typed last may be checked only now."""
    front = front_of(request)
    said = editing.clean_text(remark)
    sheet = front.desk.sheet(draft_id)
    is_told = bool(despite) or sheet.edited is None or sheet.head != version
    if verb == "accept" and not is_told and sheet.now.complaints:
        raise ReportError("The checks object; look at them, and accept once more.", code="OBJECTIONS")
    decide(front.desk, draft_id, version, session.name, session.display, verb, reason, said)
    item = front.store.item(draft_id)
    following = front.store.next_after(item, Filter()) if item else None
    address = f"/drafts/{following}" if following else "/"
    if is_part(request):
        return Response(status_code=204, headers={"HX-Redirect": address})
    return RedirectResponse(address, 303)


@router.post("/reopen")
def reopen(request: Request, draft_id: str, session: AdminChanging) -> Response:
    front = front_of(request)
    front.desk.sheet(draft_id)
    front.store.reopen(draft_id, session.name)
    return RedirectResponse(f"/drafts/{draft_id}", 303)


@router.post("/fetch")
def fetch(request: Request, draft_id: str, session: Changing) -> Response:
    front = front_of(request)
    front.desk.sheet(draft_id)
    if not front.desk.images_of(draft_id):
        front.store.log(session.name, "FETCHED", draft_id)
        front.desk.fetch_images(draft_id)
    return RedirectResponse(f"/drafts/{draft_id}", 303)


# What the report's part of a page needs


def _report(sheet: Sheet) -> dict[str, Any]:
    now = sheet.now
    report = now.report
    numbered = list(enumerate(report.findings, start=1)) if report else []
    return {
        "sheet": sheet,
        "draft": sheet.draft,
        "report": report,
        "schema": schema_of(report.examination) if report else {},
        "complaints": now.complaints,
        **_stated(now),
        "Presence": Presence,
        "changes": list(Change),
        "is_open": sheet.item.state in OPEN_STATES,
        "became": _became(sheet),
        "shown": [(n, f) for n, f in numbered if f.presence is not Presence.ABSENT],
        "absent": [(n, f) for n, f in numbered if f.presence is Presence.ABSENT],
        "stated": {f.code for _, f in numbered},
    }


def _stated(draft: Draft) -> dict[str, list]:
    """For each sentence the numbers of the findings that it states, and how it is shown."""
    report = draft.report
    if report is None:
        return {"links": [], "tones": []}
    links, tones = numbers_of(report), []
    for place, numbers in enumerate(links):
        said = {report.findings[n - 1].presence for n in numbers}
        tones.append("absent" if said == {Presence.ABSENT} else "")
        if Presence.PRESENT in said and place < len(report.sentences):
            tones[-1] = "present"
    return {"links": links, "tones": tones}


def _became(sheet: Sheet) -> dict[str, str]:
    """Code -> the gravest of what became of it so far."""
    if sheet.draft.report is None or sheet.edited is None:
        return {}
    order = ("kept", "changed", "removed", "added")
    found: dict[str, str] = {}
    for row in editing.became(sheet.draft.report, sheet.edited.report):
        found[row.code] = max(found.get(row.code, "kept"), row.outcome, key=order.index)
    return found
