"""This process -> a name by which another on the same host can tell when it is gone."""

from __future__ import annotations

import os
import socket
from hashlib import sha256
from pathlib import Path

_HOST = 24
"""Letters that stand for the host: the whole fits into the ledger's column."""


def owner(thread: int = 0) -> str:
    """Host, process, when the kernel started it (a process number is used again, both together are not), and
    which of its threads."""
    return f"{_host()} {os.getpid()} {_born(os.getpid())} {thread}"


def is_dead(owner: str) -> bool:
    """Of an owner on another host, or of another form, nobody can say: its lease ends by time."""
    parts = owner.split(" ")
    return len(parts) == 4 and parts[0] == _host() and parts[1].isdigit() and _born(int(parts[1])) != parts[2]


def _host() -> str:
    """Hashed, as long names differ in their last letters alone; and with the list of processes that is seen
    from here, as two containers may bear one name (pid_namespaces(7))."""
    processes = os.readlink("/proc/self/ns/pid") if os.path.exists("/proc/self/ns/pid") else ""
    return sha256(f"{socket.gethostname()} {processes}".encode()).hexdigest()[:_HOST]


def _born(pid: int) -> str:
    """proc(5), field 22 of stat."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return "gone"
