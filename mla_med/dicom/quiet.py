"""Libraries that print what headers hold -> silent, while anybody in the process reads or writes one.

pydicom's settings, Python's warnings and loggers belong to the whole process and not to a thread: whoever is
first switches them off, whoever is last switches them on again, in whatever order they come and go. Nobody
waits for anybody.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

import pydicom


class Shared:
    """A state of the process that holds while anybody is within."""

    def __init__(self, make: Callable[[], AbstractContextManager[object]]):
        self._make = make
        self._lock = threading.Lock()
        self._within = 0
        self._held = ExitStack()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if self._within == 0:
                self._held.enter_context(self._make())
            self._within += 1
        try:
            yield
        finally:
            with self._lock:
                self._within -= 1
                if self._within == 0:
                    self._held.close()


@contextmanager
def _silent() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("pydicom", "highdicom", "openjpeg", "libjpeg")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


libraries_silent = Shared(_silent)
"""They print values, patients' names among them, in their warnings."""
_unvalidated = Shared(lambda: pydicom.config.disable_value_validation())


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """pydicom prints bad values, which may be names; what matters of them becomes a Reason here."""
    with libraries_silent(), _unvalidated():
        yield
