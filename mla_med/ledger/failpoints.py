"""A name -> the end of this process, where MLA_MED_FAILPOINT says so: how kills are tested.

Kills at random times do not find the windows in which a delivery is lost or doubled; kills at named
points do. A process without that variable never ends here.
"""

from __future__ import annotations

import os

NAMES = ("after_receive", "draft", "persist", "send", "verify")
"""A study is on the disk · its draft is made · its bytes are committed · the PACS answered · it was read
back. Each stands before the transaction that would record it, `persist` after its own."""
EXIT_CODE = 137
"""What a shell shows of a process that was killed with SIGKILL."""


def reach(name: str) -> None:
    assert name in NAMES
    if os.environ.get("MLA_MED_FAILPOINT") == name:
        os._exit(EXIT_CODE)  # no finally, no flush, no atexit: as SIGKILL
