"""A night while it goes on -> Prometheus metrics beside those of the ledger and its deliveries."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prometheus_client import Counter, Gauge, Histogram

from mla_med.ledger.ledger import Ledger
from mla_med.night.loop import Night
from mla_med.night.work import Drafted
from mla_med.pacs.metrics import Metrics

SECONDS = (0.5, 1, 2, 5, 10, 20, 40, 80, 160, 320)


class NightMetrics(Metrics):
    """No label names a study."""

    def __init__(self, book: Ledger, destination: str, records: Path):
        """`records`: of nights before, which this process may not have seen."""
        super().__init__(book, destination)
        self._running = Gauge("mla_med_night_running", "1 while a night goes on.", registry=self.registry)
        self._ended = Gauge(
            "mla_med_night_last_end_seconds",
            "When the last night ended, since 1970; before the first, when this process began.",
            registry=self.registry,
        )
        self._ended.set(max((p.stat().st_mtime for p in records.glob("*/night.json")), default=time.time()))
        self._drafts = Counter(
            "mla_med_drafts", "Studies that workers were done with.", ["state"], registry=self.registry
        )
        self._draft_seconds = Histogram(
            "mla_med_draft_seconds",
            "Of one study in a worker, from its files to its committed documents.",
            buckets=SECONDS,
            registry=self.registry,
        )

    @contextmanager
    def running(self) -> Iterator[None]:
        self._running.set(1)
        try:
            yield
        finally:
            self._running.set(0)

    def observe_draft(self, drafted: Drafted) -> None:
        self._drafts.labels(drafted.state).inc()
        if drafted.seconds:
            self._draft_seconds.observe(drafted.seconds)

    def end(self, night: Night) -> None:
        self._ended.set(night.ended_s)
