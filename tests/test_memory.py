"""A process that keeps what it frees asks the system for little more."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mla_med.memory import keep_freed

FORTY_BLOCKS = """
import ctypes, resource, sys
from mla_med.memory import keep_freed

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
if sys.argv[1] == "keep":
    assert keep_freed()
for n in range(41):
    if n == 1:  # what the first takes, it takes in any case
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(40_000_000)
    libc.memset(block, 1, 40_000_000)
    libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages_of(way: str) -> int:
    """New pages for forty blocks of 40 MB, one after the other."""
    ran = subprocess.run(
        [sys.executable, "-c", FORTY_BLOCKS, way], capture_output=True, text=True, check=True
    )
    return int(ran.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc")
def test_freed_blocks_are_used_again():
    # of 4 KiB or 2 MiB, as the system has it
    assert pages_of("as it is") > 40 * 10
    assert pages_of("keep") < 40


def test_elsewhere_nothing_changes(monkeypatch):
    monkeypatch.setattr("sys.platform", "darwin")
    assert keep_freed() is False
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert keep_freed() is False
