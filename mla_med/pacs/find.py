"""A day -> the studies since then, however few a PACS tells at once.

A server may end its answer early: over DIMSE with a status that says so, over DICOMweb mostly without a
word, and not all know an offset. So what may be a full page is asked for again in halves of its time, down
to an hour. What this cannot know: of a PACS that says
nothing and tells fewer than MANY at once, what it kept back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta

from mla_med.errors import PacsError

Found = dict[str, None]
"""Study Instance UIDs, in order."""

MANY = 50
"""So many may be all that a server tells; servers stop at 100, 200, 500 or 1,000."""
_DAY, _HOUR, _SECOND = timedelta(days=1), timedelta(hours=1), timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Told:
    found: Found
    ended_early: bool = False
    """The PACS says that there are more."""
    whole: bool = False
    """It came in several pages, to the last."""

    @property
    def may_be_more(self) -> bool:
        return self.ended_early or (not self.whole and len(self.found) >= MANY)


Ask = Callable[[dict[str, str]], Told]
"""Matching keys, StudyDate and StudyTime (PS3.4 C.2.2.2.5), -> what the PACS tells."""


def find_since(first: date, today: date, ask: Ask) -> Found:
    """`today`: here; of clocks that are ahead nothing is lost, as the first question has no end. PacsError
    where the PACS says that it does not tell all studies of an hour."""
    told = ask({"StudyDate": f"{first:%Y%m%d}-"})
    if not told.may_be_more:
        return told.found
    begin, end = datetime.combine(first, time()), datetime.combine(today, time()) + 2 * _DAY
    return told.found | _by_halves(begin, max(end, begin + _DAY), told, ask)


def _by_halves(begin: datetime, end: datetime, told: Told, ask: Ask) -> Found:
    """`told`: of all of it."""
    if end - begin <= _HOUR:
        if told.ended_early:
            raise PacsError(
                f"The PACS tells only {len(told.found)} studies of one hour and says that there are more. "
                "Raise its limit of answers to a query.",
                code="ENDED_EARLY",
            )
        return told.found
    unit = _DAY if end - begin > _DAY else _HOUR
    middle = begin + max(1, (end - begin) // unit // 2) * unit
    halves = [(begin, middle), (middle, end)]
    answers = [ask(_keys(*half)) for half in halves]
    found = told.found
    parts = [len(answer.found) for answer in answers]
    if not told.ended_early and all(parts) and sum(parts) == len(found):
        return found  # nothing was kept back, or the halves would hold more
    for half, answer in zip(halves, answers, strict=True):
        found = found | (_by_halves(*half, answer, ask) if answer.may_be_more else answer.found)
    return found


def _keys(begin: datetime, end: datetime) -> dict[str, str]:
    last = end - _SECOND
    if end - begin >= _DAY:
        return {"StudyDate": f"{begin:%Y%m%d}-{last:%Y%m%d}"}
    return {"StudyDate": f"{begin:%Y%m%d}", "StudyTime": f"{begin:%H%M%S}-{last:%H%M%S}"}
