"""What needs a person -> a POST to the site's webhook and an e-mail, tried again until they are taken.

JSON with counts and job ids; a chat or a pager makes of it what it likes. Knows the night's account and
nothing of patients. A webhook's address may hold a secret and is never logged.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from mla_med.errors import MlaMedError
from mla_med.logs import log
from mla_med.night.audit import Audit
from mla_med.night.mail import send_mail
from mla_med.night.settings import NightSettings, read_night
from mla_med.pacs.settings import read_settings

TRIES = 5
FIRST_WAIT_S = 1.0
TIMEOUT_S = 10.0
MAX_JOBS = 50
"""Named in one message; the audit report has them all."""


def tell_people(night: NightSettings, message: dict[str, Any]) -> bool:
    """Everywhere the settings name; False where somebody did not take it."""
    told = [send_alarm(night.webhook_url, message)] if night.webhook_url else []
    told += [send_mail(night, message)] if night.mail_host else []
    return all(told)


@contextmanager
def telling_failure(settings_file: Path, what: str) -> Iterator[None]:
    """Around a whole night or check. What ends it is told as its reason code, or the name of its class, and
    goes on to whoever called."""
    try:
        yield
    except Exception as error:  # all of them: nobody looks at a log until somebody is told
        code = error.code if isinstance(error, MlaMedError) else type(error).__name__
        with suppress(MlaMedError):  # of the settings, which may be what failed
            words = f"mla_med, {read_settings(settings_file).name}: the {what} failed: {code}."
            tell_people(read_night(settings_file), {"text": words, "codes": [code], "jobs": []})
        raise


def alarm_of(audit: Audit) -> dict[str, Any] | None:
    """None where nothing needs a person."""
    rows, night = audit.for_people, audit.night
    unable = night.drafts.get("unable", 0)
    hindered = unable or night.unasked or night.unread or (night.codes and night.waiting)
    if not rows and not hindered:
        return None
    kinds = ", ".join(f"{count} {state}" for state, count in audit.counts.items())
    words = f"{len(rows)} studies need a person" if rows else "The night could not do its work"
    text = [f"mla_med, {audit.destination}: {words}.", *([f"{kinds}."] if kinds else []), *night.codes]
    return {
        "text": " ".join(text),
        "night": night.id,
        "destination": audit.destination,
        "counts": audit.counts,
        "codes": list(night.codes),
        "undelivered": night.waiting,
        "jobs": [{"job": r.job_id, "state": r.state, "reason": r.reason} for r in rows[:MAX_JOBS]],
    }


def send_alarm(
    url: str, message: dict[str, Any], sleep: Callable[[float], None] = time.sleep, tries: int = TRIES
) -> bool:
    """False where nobody took it; that is logged, and ends nothing."""
    if urlsplit(url).scheme not in ("http", "https"):
        log("alarm_failed", level="error", code="URL_INVALID")
        return False
    for attempt in range(1, tries + 1):
        try:
            # a stream: nobody waits for what it says beyond its status
            with requests.post(
                url, json=message, timeout=TIMEOUT_S, allow_redirects=False, stream=True
            ) as response:
                status = response.status_code
        except requests.RequestException as error:
            code = type(error).__name__
        else:
            if 200 <= status < 300:
                log("alarm_sent", attempt=attempt)
                return True
            code = f"HTTP_{status}"
            if 400 <= status < 500 and status not in (408, 425, 429):
                break  # it will say so again
        if attempt < tries:
            sleep(FIRST_WAIT_S * 2.0 ** (attempt - 1))
    log("alarm_failed", level="error", code=code, attempt=attempt)
    return False
