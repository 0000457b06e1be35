"""A crontab line and a time zone -> a night at each of its times, one after another, until stopped.

This is all that a site with one machine needs of an orchestrator: what is true stands in the ledger, so a
process that starts again goes on. (Prefect's `serve` is no way to do without a server: the ephemeral one
that it starts runs no scheduler, so that nothing would ever fire.)

Where clocks go forward, a night in the hour that is not begins right after it; where they go back, in the
first of the two (as Debian's cron; cronsim).
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from mla_med.errors import ConfigError, MlaMedError
from mla_med.logs import log

LOOK_S = 30.0
"""A machine that slept, or whose clock was set, is noticed after so long."""


def next_time_s(cron: str, timezone: str, after_s: float) -> float:
    try:
        times = CronSim(cron, datetime.fromtimestamp(after_s, ZoneInfo(timezone)))
        return next(times).timestamp()
    except (CronSimError, StopIteration):
        raise ConfigError(
            f"{cron!r} is no crontab line that ever comes: minute, hour, day, month, weekday, such as "
            "'0 19 * * *'."
        ) from None


def serve(
    work: Sequence[tuple[str, str, Callable[[], object]]],
    timezone: str,
    stop: threading.Event,
    clock: Callable[[], float] = time.time,
    pause: Callable[[float], object] | None = None,
    tell: Callable[[str, float], object] = lambda name, next_s: None,
    at_once: Collection[str] = (),
) -> None:
    """`work`: name, crontab line and what to do. Two that come at once are done one after the other; one
    whose time comes while it is under work is left out. What fails is logged, and its next time comes;
    `tell` hears of each next time. `at_once`: names of what was cut off and begins now."""
    due = {name: clock() if name in at_once else math.inf for name, _, _ in work}

    def plan(name: str, cron: str) -> None:
        next_s = min(due[name], next_time_s(cron, timezone, clock()))
        if next_s != due[name]:
            tell(name, next_s)
        due[name] = next_s

    while not stop.is_set():
        # reckoned anew at each look: what was due by a clock that was ahead may be years away
        for name, cron, _ in work:
            plan(name, cron)
        for name, cron, do in sorted(work, key=lambda one: due[one[0]]):
            if due[name] <= clock() and not stop.is_set():
                log("begins", verb=name)
                try:
                    do()
                except MlaMedError as error:
                    log("failed", level="error", verb=name, code=error.code)
                except Exception as error:  # whatever this one met: nobody else begins the next
                    log("failed", level="error", verb=name, code=type(error).__name__)
                due[name] = math.inf
                plan(name, cron)
        left = max(0.0, min(due.values()) - clock())
        (pause or stop.wait)(min(left, LOOK_S))
