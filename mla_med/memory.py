"""What a process does with memory that it has freed.

glibc gives every freed block of more than 32 MiB back to the system, and the system hands the next one out in
pages of 4 KiB that it fills with zeros first. An image of 1.5 mm is 44 MB a channel, and a training spent
nearly half of its time on that. Knows no image.
"""

from __future__ import annotations

import ctypes
import sys

# malloc.h of glibc, mallopt(3)
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8
_MOST = 2**31 - 1
_STEP = 256 << 20
"""Bytes by which the heap grows."""


def keep_freed() -> bool:
    """From now on this process keeps what it frees for what it allocates next: for long work on large
    images, before its first thread. False where the C library is not glibc; then nothing has changed.

    The process grows to the most that it ever needed at once, and somewhat more, and stays so large."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    options = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: _MOST, _M_TOP_PAD: _STEP, _M_ARENA_MAX: 1}
    return all(mallopt(option, value) for option, value in options.items())
