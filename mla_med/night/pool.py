"""Job ids -> drafts, in processes of their own: a model in each, loaded once, and as many threads as leave
the others their cores. The night's own process stays light, and a worker that dies costs its studies a try.

Each worker serves (1 + `ahead`) * `batch` studies at a time: a batch is in the model, the others are being
read. What a worker's libraries say goes through the redactor of mla_med.logs.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import IO

from mla_med.errors import MlaMedError
from mla_med.logs import LEVELS
from mla_med.night.work import Drafted, draft_job

DRAFT_S = 1800.0
"""No study takes longer; what does, hangs. The reader has limits of its own before."""
Work = Callable[[Path, str, bool], Drafted]

_START = "import sys; sys.path[:] = sys.argv[4].split('|'); \
from mla_med.night.pool import serve; serve(sys.argv[1], sys.argv[2], sys.argv[3] == 'True')"


class Pool:
    """`draft` is called by `slots` threads at most; more wait for their turn."""

    def __init__(
        self,
        settings_file: Path,
        workers: int = 1,
        ahead: int = 1,
        hold: bool = False,
        work: Work = draft_job,
        batch: int = 1,
    ):
        """`work` is imported in the workers by its name, so it stands in a module."""
        self.slots = workers * (1 + ahead) * batch
        self._arguments = (str(settings_file.absolute()), f"{work.__module__}:{work.__name__}", str(hold))
        self._threads = threads_of(workers)
        self._free: queue.LifoQueue[_Child] = queue.LifoQueue()
        self._children = [_Child(self._start) for _ in range(workers)]
        # LIFO, and the first study of every worker comes before the second of any
        for _ in range((1 + ahead) * batch):
            for child in self._children:
                self._free.put(child)

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-P", "-c", _START, *self._arguments, "|".join(map(os.path.abspath, sys.path))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | self._threads | {"MLA_MED_WORKER_LOG": _level()},
            # Ctrl-C and the SIGTERM of a service manager are for the night: a study under work is finished
            start_new_session=True,
        )

    def draft(self, job_id: str) -> Drafted:
        child = self._free.get()
        try:
            return child.draft(job_id)
        finally:
            self._free.put(child)

    def pids(self) -> list[int]:
        return [child.process.pid for child in self._children if child.process is not None]

    def close(self) -> None:
        for child in self._children:
            child.close()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _level() -> str:
    """What this process logs, its workers log."""
    lowest = logging.getLogger("mla_med.events").getEffectiveLevel()
    return next((name for name, number in LEVELS.items() if number >= lowest), "error")


def threads_of(workers: int) -> dict[str, str]:
    """The environment of each of so many workers."""
    threads = str(max(1, len(os.sched_getaffinity(0)) // workers))
    return dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads)


class _Child:
    """A worker process, started with the first study, and anew with the next after one that died."""

    def __init__(self, start: Callable[[], subprocess.Popen[str]]):
        self._start = start
        self._lock = threading.Lock()
        self._waiting: dict[str, Future[Drafted]] = {}
        """Of the process that runs now; its listener has the same."""
        self.process: subprocess.Popen[str] | None = None

    def draft(self, job_id: str) -> Drafted:
        answer: Future[Drafted] = Future()
        with self._lock:
            if self.process is None or self.process.poll() is not None:
                self.process, self._waiting = self._start(), {}
                arguments = (self.process, self._waiting)
                threading.Thread(target=self._listen, args=arguments, daemon=True).start()
            process = self.process
            self._waiting[job_id] = answer
            try:
                assert process.stdin is not None
                process.stdin.write(job_id + "\n")
                process.stdin.flush()
            except OSError:  # it died just now
                self._waiting.pop(job_id, None)
                return _died(job_id)
        try:
            return answer.result(DRAFT_S)
        except TimeoutError:
            process.kill()  # whatever it hangs in; what else it had under work is tried again
            return Drafted(job_id, "failed", ("DRAFT_TIMEOUT",))

    def _listen(self, process: subprocess.Popen[str], waiting: dict[str, Future[Drafted]]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            values = json.loads(line)
            with self._lock:
                answer = waiting.pop(values["job_id"], None)
            if answer is not None:
                answer.set_result(Drafted(**(values | {"codes": tuple(values["codes"])})))
        process.wait()
        with self._lock:
            lost = list(waiting.items())
            waiting.clear()
        for job_id, answer in lost:
            answer.set_result(_died(job_id))

    def close(self) -> None:
        """After what it is working on."""
        process = self.process
        if process is None:
            return
        assert process.stdin is not None
        with suppress(OSError):
            process.stdin.close()
        process.wait()


def _died(job_id: str) -> Drafted:
    return Drafted(job_id, "failed", ("WORKER_DIED",))


def serve(settings_file: str, work: str, hold: bool) -> None:
    """In the child: a job id a line in, a Drafted a line out, until nobody asks any more."""
    from importlib import import_module

    from mla_med.logs import start_logging

    # What a library prints is nobody's answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    start_logging(level=os.environ.get("MLA_MED_WORKER_LOG", "warning"))
    module, _, name = work.partition(":")
    draft = getattr(import_module(module), name)
    lock, running = threading.Lock(), set[Future[None]]()
    for line in sys.stdin:
        started: Future[None] = Future()
        one = partial(draft, Path(settings_file), line.strip(), hold)
        running = {future for future in running if not future.done()} | {started}
        threading.Thread(
            target=_serve_one, args=(one, line.strip(), answers, lock, started), daemon=True
        ).start()
    wait_for(running)
    os._exit(0)  # no reader is waited for: each ends with its parent


def _serve_one(
    draft: Callable[[], Drafted],
    job_id: str,
    answers: IO[str],
    lock: threading.Lock,
    done: Future[None],
) -> None:
    finished = False
    try:
        drafted = draft()
        finished = True
    except MlaMedError as error:  # of the settings or the ledger: before any study
        drafted, finished = Drafted(job_id, "unable", (error.code,)), True
    finally:
        if not finished:
            # What nobody expected: its words are in no log, and what it left behind is unknown. The job
            # counts a try; another worker goes on.
            threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread())))
            os.kill(os.getpid(), signal.SIGKILL)
    with lock, suppress(OSError):  # the night was killed: what is drafted is committed, and told to nobody
        answers.write(json.dumps(asdict(drafted)) + "\n")
        answers.flush()
    done.set_result(None)
