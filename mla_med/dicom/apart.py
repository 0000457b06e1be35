"""Reader function and arguments -> its result, worked out in a child process with limits.

A damaged or hostile file can crash a decoder, ask for all memory or never end. Here that costs a
child process, and the caller gets a StudyError with a code. Knows processes, pipes and limits of
POSIX systems; knows nothing of DICOM.

    with ReaderProcess() as reader:
        pending = reader.start(read_volume, series)
        import torch                                  # meanwhile
        volume = pending.result()

The child is a fresh interpreter, not a fork: the caller may hold threads (torch), be a daemon
(multiprocessing) or lack an `if __name__ == "__main__"`. The function is imported there by its
name, so it stands in a module; what it prints is dropped, for decoders print values that may be names.

This guards against accidents, not against code that runs: the child has the rights of its caller.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import pickle
import resource
import select
import signal
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, ParamSpec, TypeVar

import numpy as np

from mla_med.errors import MlaMedError, StudyError

P = ParamSpec("P")
T = TypeVar("T")

# -P and the caller's own path: a folder of files from a stranger may be the working directory.
_START = "import sys, json; given = json.loads(sys.argv[1]); sys.path[:] = given.pop('path'); \
from mla_med.dicom.apart import serve; serve(**given)"
_HEAD = struct.Struct("<cQQI")  # kind, peak memory in bytes, bytes of pickle, number of buffers
_BUFFER = struct.Struct("<Q?")  # bytes, read-only
_RESULT, _REFUSAL, _NO_MEMORY, _FAILURE = b"R", b"E", b"M", b"F"
_ORPHAN_S = 5.0
"""So long after its wall time the child ends itself, should its parent be gone."""
_CHUNK_BYTES = 2**20
_PIPE_BYTES = 2**20
"""What Linux lets everybody have."""
_UNREADABLE = (
    *(pickle.UnpicklingError, BrokenPipeError, EOFError, LookupError),
    *(ValueError, TypeError, AttributeError, ImportError),
)
"""What reading an answer raises when the child died over it, or wrote nonsense."""
_PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one call may use. Memory holds for the life of the child, the rest for each call."""

    memory_bytes: int = 6 * 2**30
    """Address space: a volume of 4 GiB, the largest that is read, and what decodes it."""
    cpu_s: float = 600.0
    """Processor time; the kernel counts in whole seconds."""
    wall_s: float = 900.0
    file_bytes: int = 0
    """The largest file it may write: readers write none."""


_STOPPED = (-signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP)
"""How a service manager, or a terminal, ends a service and its children."""


class ReaderError(StudyError):
    """The child did not answer as a reader should. Codes: READER_OUT_OF_MEMORY, READER_TIMEOUT,
    READER_CRASHED, READER_FAILED; READER_STOPPED, of which the study is not the cause."""

    code = "READER_FAILED"

    def __init__(self, message: str, *, code: str | None = None, detail: str = ""):
        super().__init__(message, code=code)
        self.detail = detail
        """The limit, the signal, or the exception's class and place; never its message."""


def read_apart(read: Callable[..., T], *args: Any, limits: Limits = Limits()) -> T:
    """`read(*args)` in a child process that ends with it. Raises what ReaderProcess.call raises."""
    with ReaderProcess(limits) as reader:
        return reader.call(read, *args)


class ReaderProcess:
    """A child process that serves calls one after another, and is replaced after one that broke it.

    It keeps what its modules keep between calls: the headers that read_study read are not read again
    by read_volume. Relative paths mean the folder that was current when the child started.
    """

    def __init__(self, limits: Limits = Limits()):
        self.limits = limits
        self.peak_bytes = 0
        """The most memory that the child had in use at once in the last call; 0 where it is not known."""
        self._child: subprocess.Popen[bytes] | None = None
        self._closed = False
        self._lock = threading.Lock()
        # One thread: it queues the calls, keeps their time and takes large results in as they come.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="reader")

    def __enter__(self) -> ReaderProcess:
        self._running_child()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def call(self, read: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`read(*args)`. MlaMedErrors come back as themselves; the rest is a ReaderError."""
        return self.start(read, *args, **kwargs).result()

    def start(self, read: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """The same without waiting: the Future's result() gives the result or raises."""
        assert read.__module__ != "__main__", "the child imports the function: move it to a module"
        request = pickle.dumps((read, args, kwargs), protocol=5)
        return self._thread.submit(self._answer, request, _subject((*args, *kwargs.values())))

    def close(self) -> None:
        """Ends the child, whatever it is doing, and waits until it is gone."""
        with self._lock:
            self._closed = True
            if self._child is not None:
                self._child.kill()
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._discard()

    def _answer(self, request: bytes, subject: str) -> Any:
        child = self._running_child()
        pipes = _Pipes(child, time.monotonic() + self.limits.wall_s)
        try:
            pipes.write(request)
            kind, answer = self._receive(pipes)
        except TimeoutError:
            self._discard()
            raise _too_slow(subject, f"{self.limits.wall_s:g} s") from None
        except _UNREADABLE:
            raise self._died(subject) from None
        except MemoryError:  # here, where the answer has no room
            self._discard()
            raise _out_of_memory(subject, self.limits.memory_bytes) from None
        if kind == _RESULT:
            return answer
        if kind == _REFUSAL:
            raise answer
        # What such a call left behind in the child is unknown.
        self._discard()
        if kind == _NO_MEMORY:
            raise _out_of_memory(subject, self.limits.memory_bytes)
        raise _failed(subject, answer)

    def _running_child(self) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._closed:
                raise RuntimeError("this ReaderProcess was closed")
            if self._child is None or self._child.poll() is not None:
                self._child = _start_child(self.limits)
            return self._child

    def _receive(self, pipes: _Pipes) -> tuple[bytes, Any]:
        head = pipes.read(_HEAD.size)
        kind, self.peak_bytes, size, count = _HEAD.unpack(head)
        sizes = [_BUFFER.unpack(pipes.read(_BUFFER.size)) for _ in range(count)]
        if size + sum(length for length, _ in sizes) > self.limits.memory_bytes:
            raise ValueError("more than the child can hold")
        pickled = pipes.read(size)
        buffers = [_with_flag(pipes.read(length), read_only) for length, read_only in sizes]
        # Pickle runs code that its bytes name. These come from our own code in our own child, which
        # could do by itself whatever they could make us do.
        return kind, pickle.loads(pickled, buffers=buffers)

    def _died(self, subject: str) -> ReaderError:
        assert self._child is not None
        try:
            status = self._child.wait(timeout=_ORPHAN_S)
        except subprocess.TimeoutExpired:
            status = 0
        self._discard()
        if self._closed or status in _STOPPED:
            return _stopped(subject)
        if status in (-signal.SIGXCPU, -signal.SIGALRM):
            return _too_slow(subject, f"{self.limits.cpu_s:g} s of processor time")
        return _crashed(subject, signal.Signals(-status).name if status < 0 else f"exit {status}")

    def _discard(self) -> None:
        with self._lock:
            child, self._child, self.peak_bytes = self._child, None, 0
        if child is not None:
            child.kill()
            child.communicate()


def _start_child(limits: Limits) -> subprocess.Popen[bytes]:
    given = json.dumps({"path": sys.path, **asdict(limits)})
    child = subprocess.Popen(
        [sys.executable, "-P", "-B", "-c", _START, given],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        # Threads of linear algebra that no reader uses would take address space.
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        bufsize=0,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    os.set_blocking(child.stdin.fileno(), False)
    _widen(child.stdout.fileno())
    return child


def _widen(pipe: int) -> None:
    """A volume of 300 MB through a pipe of 64 KiB costs five thousand switches between two processes."""
    with suppress(OSError, AttributeError):  # another system, or a limit of this one: slower, not wrong
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


class _Pipes:
    """The two ends of a child's pipes, until a deadline. Raises TimeoutError, BrokenPipeError, EOFError."""

    def __init__(self, child: subprocess.Popen[bytes], deadline: float):
        assert child.stdin is not None
        assert child.stdout is not None
        self._to, self._from, self._deadline = child.stdin.fileno(), child.stdout.fileno(), deadline

    def write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            self._wait(self._to, select.POLLOUT)
            rest = rest[os.write(self._to, rest) :]

    def read(self, size: int) -> memoryview:
        """So many bytes, each stored once: a volume is not copied."""
        data = rest = np.empty(size, np.uint8).data
        while rest:
            self._wait(self._from, select.POLLIN)
            count = os.readv(self._from, [rest[:_CHUNK_BYTES]])
            if not count:
                raise EOFError
            rest = rest[count:]
        return data

    def _wait(self, pipe: int, event: int) -> None:
        poll = select.poll()
        poll.register(pipe, event)
        left_s = self._deadline - time.monotonic()
        if left_s <= 0 or not poll.poll(math.ceil(left_s * 1000)):
            raise TimeoutError


def _with_flag(data: memoryview, read_only: bool) -> memoryview:
    return data.toreadonly() if read_only else data


def _subject(args: Iterable[object]) -> str:
    """What was being read, for the message: the first argument that says it."""
    for arg in args:
        if isinstance(arg, Path):
            return str(arg)
        if uid := getattr(arg, "series_uid", ""):
            return f"series {uid}"
    return "the study"


def _too_slow(subject: str, limit: str) -> ReaderError:
    return ReaderError(
        f"Reading {subject} took more than {limit} and was stopped. Is a file damaged, or the disk slow? "
        "Set the study aside, or allow more time.",
        code="READER_TIMEOUT",
        detail=limit,
    )


def _out_of_memory(subject: str, memory_bytes: int) -> ReaderError:
    limit = f"{memory_bytes / 2**30:.3g} GiB"
    return ReaderError(
        f"Reading {subject} needed more than {limit} of memory. Is a file damaged? "
        "Set the study aside, or allow more memory.",
        code="READER_OUT_OF_MEMORY",
        detail=limit,
    )


def _stopped(subject: str) -> ReaderError:
    return ReaderError(f"Reading {subject} was stopped before it was done.", code="READER_STOPPED")


def _crashed(subject: str, how: str) -> ReaderError:
    cause = "Was memory short?" if how == "SIGKILL" else "A file may be damaged or hostile."
    return ReaderError(
        f"The process that read {subject} ended before it was done ({how}). {cause} Set the study aside.",
        code="READER_CRASHED",
        detail=how,
    )


def _failed(subject: str, detail: str) -> ReaderError:
    return ReaderError(
        f"The reader failed on {subject} ({detail}). That is a fault of the reader: "
        "set the study aside and report these words.",
        code="READER_FAILED",
        detail=detail,
    )


def serve(memory_bytes: int, cpu_s: float, wall_s: float, file_bytes: int) -> None:
    """The child's side: answers calls on its standard input until that ends."""
    requests, replies = _own_pipes()
    # Ctrl-C reaches the whole terminal; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _limit(resource.RLIMIT_AS, memory_bytes)
    _limit(resource.RLIMIT_FSIZE, file_bytes)
    _limit(resource.RLIMIT_CORE, 0)
    # What nobody expected ends the child, and is told without its words.
    sys.excepthook = partial(_report, replies)
    threading.Thread(target=_end_with_parent, args=(requests.fileno(),), daemon=True).start()
    while requests.peek(1):
        _allow_time(cpu_s, wall_s)
        _forget_peak()
        _serve_one(requests, replies)
        signal.setitimer(signal.ITIMER_REAL, 0)


def _own_pipes() -> tuple[Any, BinaryIO]:
    """The pipes to the parent, moved to where nothing prints; the usual places lead nowhere."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    return requests, replies


def _limit(what: int, amount: int) -> None:
    hard = resource.getrlimit(what)[1]
    if hard != resource.RLIM_INFINITY:
        amount = min(amount, hard)
    resource.setrlimit(what, (amount, amount))


def _end_with_parent(pipe: int) -> None:
    """Waits until nobody holds the other end: the parent was killed."""
    poll = select.poll()
    poll.register(pipe, 0)
    poll.poll()
    os._exit(1)


def _allow_time(cpu_s: float, wall_s: float) -> None:
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    until = math.ceil(time.process_time() + cpu_s)
    resource.setrlimit(resource.RLIMIT_CPU, (until if hard < 0 else min(until, hard), hard))
    # The parent keeps the wall time; this is for a decoder that never returns after its parent was killed.
    signal.setitimer(signal.ITIMER_REAL, wall_s + _ORPHAN_S)


def _forget_peak() -> None:
    with suppress(OSError):  # read-only in some containers: the peak is then that of all calls
        Path("/proc/self/clear_refs").write_text("5")


def _serve_one(requests: BinaryIO, replies: BinaryIO) -> None:
    read, args, kwargs = pickle.load(requests)
    try:
        answer = _frame(_RESULT, read(*args, **kwargs))
    except MlaMedError as error:
        answer = _frame(_REFUSAL, error)
    except MemoryError:
        answer = _frame(_NO_MEMORY, None)
    for part in answer:
        replies.write(part)
    replies.flush()


def _frame(kind: bytes, answer: object) -> list[bytes | memoryview]:
    """The parts to send; arrays stay where they are."""
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(answer, protocol=5, buffer_callback=buffers.append)
    views = [buffer.raw() for buffer in buffers]
    head = _HEAD.pack(kind, _peak_bytes(), len(pickled), len(views))
    return [head, *(_BUFFER.pack(view.nbytes, view.readonly) for view in views), pickled, *views]


def _peak_bytes() -> int:
    # Not ru_maxrss: that begins with what the parent had when it started this process.
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line[:6] == "VmHWM:"), 0)


def _report(
    replies: BinaryIO, kind: type[BaseException], _: BaseException, trace: TracebackType | None
) -> None:
    """The class of an exception and its place in the code; its words may hold a name."""
    frames = [(Path(f.f_code.co_filename), line) for f, line in traceback.walk_tb(trace)]
    ours = [place for place in frames if place[0].is_relative_to(_PACKAGE) and place[0] != Path(__file__)]
    shown = " under ".join(f"{path.name}:{line}" for path, line in dict.fromkeys([*frames[-1:], *ours[-1:]]))
    for part in _frame(_FAILURE, f"{kind.__name__} at {shown}"):
        replies.write(part)
    replies.flush()
