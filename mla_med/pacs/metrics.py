"""The ledger and its deliveries -> Prometheus metrics: counts and times, no label that names a patient.

Read at the moment of a scrape from the ledger, so that they are right after a restart. Served on
127.0.0.1 alone, or written as a file for the node exporter's textfile collector, which needs no port.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server, write_to_textfile
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from mla_med.ledger.ledger import Ledger
from mla_med.ledger.nouns import JobState, Outcome

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60)


class Metrics:
    def __init__(self, ledger: Ledger, destination: str):
        self.registry = CollectorRegistry()
        self.registry.register(_LedgerCollector(ledger, destination))
        self._tries = Counter(
            "mla_med_tries", "Tries to deliver a document.", ["outcome", "reason"], registry=self.registry
        )
        self._seconds = Histogram(
            "mla_med_try_seconds",
            "Of one document, sent and read back.",
            buckets=SECONDS,
            registry=self.registry,
        )

    def observe(self, outcome: Outcome, seconds: float) -> None:
        self._tries.labels(outcome.kind, outcome.reason).inc()
        self._seconds.observe(seconds)

    def serve(self, port: int) -> None:
        start_http_server(port, addr="127.0.0.1", registry=self.registry)

    def write(self, path: Path) -> None:
        write_to_textfile(str(path), self.registry)


class _LedgerCollector(Collector):
    def __init__(self, ledger: Ledger, destination: str):
        self._ledger = ledger
        self._destination = destination

    def collect(self) -> Iterator[GaugeMetricFamily]:
        documents = GaugeMetricFamily(
            "mla_med_documents", "Documents of the outbox.", labels=["destination", "state"]
        )
        for (destination, state), number in self._ledger.depths().items():
            documents.add_metric([destination, state], number)
        yield documents
        jobs = GaugeMetricFamily("mla_med_jobs", "Studies and revisions.", labels=["state"])
        counts = self._ledger.job_counts()
        for state in JobState:  # the zeros too: an alarm sees the first of a kind
            jobs.add_metric([state], counts.get(state, 0))
        yield jobs
        oldest = GaugeMetricFamily(
            "mla_med_oldest_undelivered_seconds",
            "Age of the oldest undelivered document.",
            labels=["destination"],
        )
        oldest.add_metric([self._destination], self._ledger.oldest_pending_s(self._destination))
        yield oldest
        spared = GaugeMetricFamily(
            "mla_med_destination_spared", "1 while the circuit breaker is open.", labels=["destination"]
        )
        spared.add_metric([self._destination], float(self._ledger.is_open(self._destination)))
        yield spared
        denied = GaugeMetricFamily(
            "mla_med_destination_denied", "1 while it does not let us in.", labels=["destination"]
        )
        denied.add_metric([self._destination], float(bool(self._ledger.denied(self._destination))))
        yield denied
