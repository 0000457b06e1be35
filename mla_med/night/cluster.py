"""Job ids -> drafts, on the workers of a Dask cluster: the same face as `pool.Pool`, on other machines.

The cluster's workers import this project and read the same settings, inbox and ledger; they know nothing of
Prefect, whoever runs the night. Each loads its model once and has as many slots as threads. Here nobody
kills a worker that hangs: the night goes on without its study, whose claim ends by time.
"""

from __future__ import annotations

import uuid
from concurrent.futures import CancelledError
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from mla_med.errors import ConfigError, MlaMedError
from mla_med.logs import start_logging
from mla_med.night.pool import DRAFT_S, Work
from mla_med.night.work import Drafted, draft_job

WAIT_S = 60.0
"""For the scheduler, and for its first worker."""


class Cluster:
    """`draft` is called by `slots` threads at most, and waits."""

    def __init__(self, address: str, settings_file: Path, hold: bool = False, work: Work = draft_job):
        """`address`: of the scheduler. `work` is imported in the workers by its name."""
        from distributed import Client

        self._arguments = (f"{work.__module__}:{work.__name__}", str(settings_file.absolute()), hold)
        try:
            self._client: Any = Client(address, timeout=WAIT_S, set_as_default=False)
        except (OSError, ValueError):  # TimeoutError is one; an address that is none is the other
            raise _unreachable(address) from None
        try:
            self._client.wait_for_workers(1, timeout=WAIT_S)
        except TimeoutError:
            self.close()
            raise _unreachable(address) from None
        self.slots = sum(self._client.nthreads().values())

    def draft(self, job_id: str) -> Drafted:
        from distributed import KilledWorker

        once = f"mla_med-{uuid.uuid4().hex}"
        work, settings_file, hold = self._arguments
        try:
            one = self._client.submit(draft_there, work, settings_file, job_id, hold, once, pure=False)
            return one.result(DRAFT_S)
        except TimeoutError:
            return Drafted(job_id, "failed", ("DRAFT_TIMEOUT",))
        except KilledWorker:  # Dask gave it to several, and it ended all of them
            return Drafted(job_id, "failed", ("WORKER_DIED",))
        except (CancelledError, OSError):  # the scheduler is gone, and no study will fare better
            return Drafted(job_id, "unable", ("DASK_UNREACHABLE",))

    def close(self) -> None:
        """The cluster goes on, for others."""
        self._client.close()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def draft_there(work: str, settings_file: str, job_id: str, hold: bool, once: str) -> Drafted:
    """On a worker of the cluster. What goes wrong comes back as a code: Dask logs the words of an exception,
    and sends them on. `once`: a name of this one try. What a worker had under work when it died Dask begins
    again elsewhere, where it would end the next worker; whether it is tried again is the night's business."""
    from distributed import Event

    _quiet()
    begun = Event(once)
    if begun.is_set():
        return Drafted(job_id, "failed", ("WORKER_DIED",))
    begun.set()
    module, _, name = work.partition(":")
    try:
        return getattr(import_module(module), name)(Path(settings_file), job_id, hold)
    except MlaMedError as error:  # of the settings or the ledger: before any study
        return Drafted(job_id, "unable", (error.code,))
    except Exception as error:  # all of them: this is the last place before Dask writes it down
        return Drafted(job_id, "failed", (type(error).__name__,))


@cache
def _quiet() -> None:
    """Once a process: what its libraries say goes through the redactor, as in our own workers."""
    start_logging(level="warning")


def _unreachable(address: str) -> ConfigError:
    return ConfigError(
        f"No Dask scheduler with a worker answers at {address}. Is [night] dask its address, such as "
        "tcp://10.0.0.5:8786, and has a worker joined it?",
        code="DASK_UNREACHABLE",
    )
