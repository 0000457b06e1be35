"""One reference and its draft -> what is wrong with the draft, and where in the texts it stands.

Knows how texts were read (`findings`, `conflicts`), and no scores of a corpus.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from evaluation.conflicts import find_conflicts
from evaluation.findings import Mark, Reading, match_findings, sizes_agree
from evaluation.habits import has_no_prior
from evaluation.perturb import compares
from evaluation.results import Case, CaseRow, Piece
from mla_med.types import Presence, Side


def case_row(
    id_: str, reference: str, draft: str, prior: bool | None, theirs: Reading, ours: Reading, language: str
) -> CaseRow:
    present = [_codes(reading, Presence.PRESENT) for reading in (theirs, ours)]
    denied = _codes(theirs, Presence.ABSENT)
    invented = [code for code in present[1] if code not in present[0]]
    return CaseRow(
        id=id_,
        scores={},
        missed=tuple(code for code in present[0] if code not in present[1]),
        invented=tuple(invented),
        contradicted=tuple(code for code in invented if code in denied),
        differs=tuple(_differences(theirs, ours)),
        conflicts=tuple(c.kind for c in find_conflicts(reference, draft, language)),
        temporal=has_no_prior(prior, reference, language) and compares(draft, language),
        empty=not draft.strip(),
    )


def show_case(
    row: CaseRow, reference: str, draft: str, theirs: Reading, ours: Reading, language: str
) -> Case:
    differing = {said.partition(":")[0] for said in row.differs}
    conflicts = find_conflicts(reference, draft, language)
    whole = [(c.start, c.end, "conflict", f"{c.kind}; the reference: {c.reference}") for c in conflicts]
    ours_ = [(m.start, m.end, *_of_draft(m, row, differing, theirs)) for m in ours.marks]
    theirs_ = [(m.start, m.end, *_of_reference(m, row, differing)) for m in theirs.marks]
    return Case(row, tuple(to_pieces(reference, theirs_)), tuple(to_pieces(draft, [*whole, *ours_])))


def to_pieces(text: str, spans: Iterable[tuple[int, int, str, str]]) -> list[Piece]:
    """Of spans that overlap the later one is seen; a kind of "" marks nothing."""
    owner: list[tuple[str, str] | None] = [None] * len(text)
    for start, end, kind, words in spans:
        if kind:
            owner[start:end] = [(kind, words)] * (min(end, len(text)) - start)
    pieces, at = [], 0
    for k in range(1, len(text) + 1):
        if k == len(text) or owner[k] != owner[at]:
            kind, words = owner[at] or ("", "")
            pieces.append(Piece(text[at:k], kind, words))
            at = k
    return pieces


def _of_draft(mark: Mark, row: CaseRow, differing: set[str], theirs: Reading) -> tuple[str, str]:
    if mark.presence is not Presence.PRESENT:
        wrong = mark.code in row.missed
        return ("missed", f"{mark.code}: the reference says present") if wrong else ("", "")
    if mark.code in row.contradicted:
        return "contradicted", f"{mark.code}: the reference says absent"
    if mark.code in row.invented:
        return "invented", f"{mark.code}: not in the reference"
    if mark.code in differing:
        return "differs", "; ".join(d for d in row.differs if d.startswith(f"{mark.code}:"))
    return "right", f"{mark.code}: as in the reference"


def _of_reference(mark: Mark, row: CaseRow, differing: set[str]) -> tuple[str, str]:
    if mark.presence is not Presence.PRESENT:
        wrong = mark.code in row.contradicted
        return ("contradicted", f"{mark.code}: the draft says present") if wrong else ("", "")
    if mark.code in row.missed:
        return "missed", f"{mark.code}: not in the draft"
    return ("differs" if mark.code in differing else "right"), mark.code


def _differences(theirs: Reading, ours: Reading) -> Iterable[str]:
    for a, b in match_findings(theirs.findings, ours.findings):
        if a.side in (Side.LEFT, Side.RIGHT) and b.side is not a.side:
            yield f"{a.code}: {b.side or 'no side'} instead of {a.side}"
        elif a.site and b.site != a.site:
            yield f"{a.code}: {_words(b.site)} instead of {_words(a.site)}"
        elif a.size_mm is not None and not sizes_agree(a.size_mm, b.size_mm):
            size = "no size" if b.size_mm is None else f"{b.size_mm:g} mm"
            yield f"{a.code}: {size} instead of {a.size_mm:g} mm"


def _words(site: str | None) -> str:
    return site.replace("_", " ") if site else "no site"


def _codes(reading: Reading, presence: Presence) -> Sequence[str]:
    return list(dict.fromkeys(f.code for f in reading.findings if f.presence is presence))
