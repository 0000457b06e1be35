"""A worker for the kill tests: what a flow does with one study, from receipt to delivery.

    python delivery_worker.py SETTINGS.json < jobs

Each line of stdin is one study: its number and, after a space, the failpoint at which the process
that takes it is to die, or none. For each a child is forked, so that a kill costs no start of Python.
The "model" words its draft anew each time, as sampled text does.
"""

from __future__ import annotations

import json
import os
import sys
import time
import uuid
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
LATER_S = 400
"""Each child lives so much later than the one before: the lease of who was killed has ended by then."""


def main() -> None:
    settings = json.loads(sys.argv[1])
    import drafts

    from mla_med.ledger.failpoints import EXIT_CODE, reach
    from mla_med.ledger.ledger import Ledger
    from mla_med.pacs.deliver import commit_documents, deliver_due
    from mla_med.pacs.run import make_peer
    from mla_med.pacs.settings import Credentials, PacsSettings

    def work(number: int, later_s: float) -> None:
        clock = lambda: time.time() + later_s  # noqa: E731
        ledger = Ledger.open(settings["ledger_url"], bytes.fromhex(settings["key"]), clock)
        job = ledger.see(drafts.study_uid(number), 4)
        if job.state == "DISCOVERED":
            reach("after_receive")
            ledger.ready(job.id, 4)
        if ledger.newest_job(drafts.study_uid(number)).state == "READY":
            content = drafts.sr(number, f"Nodule worded as {uuid.uuid4()}, ≥ 3 mm.")
            commit_documents(ledger, [content], "pacs", validate="off")
        peer = make_peer(PacsSettings(**settings["pacs"]), Credentials())
        deliver_due(ledger, peer, "pacs", workers=1, batch=1)

    for child_number, line in enumerate(sys.stdin):
        number, _, point = line.strip().partition(" ")
        child = os.fork()
        if not child:
            if point:
                os.environ["MLA_MED_FAILPOINT"] = point
            work(int(number), LATER_S * child_number)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        assert code in (0, EXIT_CODE), code
        print(code, flush=True)


if __name__ == "__main__":
    main()
