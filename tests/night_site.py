"""A site for tests of the night: its settings file, tiny studies in its PACS, and a worker whose model is a
stub: it reads the files and writes a real SR, without a network."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import drafts
from pydicom import dcmread

from mla_med.documents.envelope import Revision
from mla_med.night.batches import Batches
from mla_med.night.claims import Claims
from mla_med.night.loop import by_threads, open_site
from mla_med.night.pool import Pool
from mla_med.night.run import night_with
from mla_med.night.settings import read_night
from mla_med.night.work import Drafted, Made, Worker
from mla_med.pacs.run import open_ledger
from mla_med.pacs.settings import read_settings

SLICES = 4
ROOT = Path(__file__).parents[1]


def write_settings(folder: Path, dicomweb_url: str, night: str = "", **pacs: object) -> Path:
    """mla-med.toml of a PACS with next to no waiting; what stands in `pacs` is on top."""
    values: dict[str, object] = {
        "name": "main",
        "dicomweb_url": dicomweb_url,
        "ledger_url": f"sqlite:///{folder / 'ledger.db'}",
        "key_file": str(folder / "site.key"),
        "inbox": str(folder / "inbox"),
        "settle_s": 0.0,
        "timeout_s": 10.0,
        "days": 100_000 // 365,
        "max_used": 1.0,
        "min_free_bytes": 0,
        "check_with_dciodvfy": "off",
    }
    lines = [f"{key} = {_toml(value)}" for key, value in (values | pacs).items()]
    own = f'out = "{folder / "drafts"}"\nrecords = "{folder / "nights"}"\n{night}'
    path = folder / "mla-med.toml"
    path.write_text("[pacs]\n" + "\n".join(lines) + f"\n[night]\n{own}\n")
    return path


def _toml(value: object) -> str:
    return json.dumps(value)  # of a string, a number or a truth value the same


def upload(server, numbers, slices: int = SLICES, **changes: str) -> None:
    """Studies of four slices of today."""
    for number in numbers:
        for k in range(1, slices + 1):
            image = drafts.image(number, k)
            image.StudyDate = image.SeriesDate = time.strftime("%Y%m%d")
            image.decompress() if image.file_meta.TransferSyntaxUID.is_compressed else None
            image.Rows = image.Columns = 16
            image.PixelData = bytes(16 * 16 * 2)
            for keyword, value in changes.items():
                setattr(image, keyword, value)
            server.upload(drafts.to_bytes(image))


def documents(server) -> list[str]:
    """Study UIDs of the SRs that lie in the PACS, one for each."""
    series = [server.get(f"/series/{key}") for key in server.get("/series")]
    reports = [one for one in series if one["MainDicomTags"]["Modality"] == "SR"]
    found = [server.get(f"/series/{one['ID']}/study") for one in reports for _ in one["Instances"]]
    return sorted(one["MainDicomTags"]["StudyInstanceUID"] for one in found)


class Stub:
    """Instead of a model. `seconds` of it are spent with the model in hand, for each batch."""

    def __init__(self, seconds: float = 0.0, before: Callable[[], None] = lambda: None, batch: int = 1):
        self.seconds = seconds
        self.before = before
        self._worded = Batches(self._word, batch)

    def __call__(
        self,
        folder: Path,
        out: Path,
        keep: Callable[[], None],
        revision: Revision | None,
        alone: bool = False,
    ) -> Made:
        self.before()
        first = dcmread(min(folder.iterdir()))
        number = int(str(first.StudyInstanceUID).removeprefix("2.25.7000"))
        keep()
        content = self._worded(number, alone)
        keep()
        out.mkdir(parents=True)
        (out / "draft.dcm").write_bytes(content)
        return True, (), [out / "draft.dcm"]

    def _word(self, numbers: Sequence[int]) -> list[bytes]:
        time.sleep(self.seconds)
        return [drafts.sr(n, f"Worded by {os.getpid()} at {time.time_ns()}, ≥ 3 mm.") for n in numbers]


@cache
def _worker(settings_file: Path) -> Worker:
    pacs, night = read_settings(settings_file), read_night(settings_file)
    with (settings_file.parent / "workers").open("a") as file:  # one line for each model that was loaded
        file.write(f"{os.getpid()}\n")
    stub = Stub(float(os.environ.get("STUB_SECONDS", "0")), batch=night.batch)
    return Worker(pacs, night, open_ledger(pacs), Claims.open(pacs.ledger_url), stub)


_MAKING = threading.Lock()


def draft_job(settings_file: Path, job_id: str, hold: bool) -> Drafted:
    with _MAKING:
        worker = _worker(settings_file)
    return worker.draft(job_id, hold)


def end_worker(settings_file: Path, job_id: str, hold: bool) -> Drafted:
    """Of the jobs whose names begin with bad; each begin of any is noted."""
    with (settings_file.parent / "begun").open("a") as file:
        file.write(f"{job_id}\n")
    if job_id.startswith("bad"):
        time.sleep(0.3)  # what is under work beside it has begun
        os._exit(1)
    time.sleep(1.5)
    return Drafted(job_id, "drafted")


def break_down(settings_file: Path, job_id: str, hold: bool) -> Drafted:
    raise ValueError("could not convert 'Xanthippe^Quercy'")


def main() -> None:
    """A night in a process that a test may kill: python night_site.py SETTINGS WORKERS."""
    from night_site import draft_job as work  # by the name that its workers find it under

    from mla_med.logs import start_logging
    from mla_med.night.loop import by_threads, open_site
    from mla_med.night.pool import Pool
    from mla_med.night.run import night_with

    start_logging(level="error")
    settings_file = Path(sys.argv[1])
    with (
        open_site(settings_file) as here,
        Pool(settings_file, int(sys.argv[2]), 1, work=work, batch=here.night.batch) as pool,
        by_threads(pool.draft, pool.slots) as submit,
    ):
        account = night_with(here, submit, pool.slots)
    print(json.dumps(account.audit.night.drafts))


if __name__ == "__main__":
    main()


def run(settings_file, workers=1, hold=False, clock=time.time, **more):
    """A night with stub workers in processes of their own."""
    with (
        open_site(settings_file, clock) as here,
        Pool(settings_file, workers, 1, hold, draft_job, here.night.batch) as pool,
        by_threads(pool.draft, pool.slots) as submit,
    ):
        return night_with(here, submit, pool.slots, **more)


def ready_job(here, number: int, folder) -> str:
    """A study in the inbox, as `pull` leaves it."""
    job = here.book.see(drafts.study_uid(number), 4)
    here.book.ready(job.id, 4)
    (folder / "inbox" / job.id).mkdir(parents=True)
    for k in range(1, 5):
        (folder / "inbox" / job.id / f"{k}.dcm").write_bytes(drafts.to_bytes(drafts.image(number, k)))
    return job.id
