"""This process -> a name by which another on the same host can tell when it is gone."""

from __future__ import annotations

import os
import socket
from pathlib import Path

_HOST = 24
"""Letters of the host's name: the whole fits into the ledger's column."""


def owner(thread: int = 0) -> str:
    """Host, process, when the kernel started it (a process number is used again, both together are not), and
    which of its threads."""
    return f"{_host()} {os.getpid()} {_born(os.getpid())} {thread}"


def is_dead(owner: str) -> bool:
    """Of an owner on another host, or of another form, nobody can say: its lease ends by time."""
    parts = owner.split(" ")
    return len(parts) == 4 and parts[0] == _host() and parts[1].isdigit() and _born(int(parts[1])) != parts[2]


def _host() -> str:
    return socket.gethostname().replace(" ", "-")[:_HOST]


def _born(pid: int) -> str:
    """proc(5), field 22 of stat."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return "gone"
