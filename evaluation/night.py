"""The night on this machine -> studies per hour: the bare loop over draft_one, the night with 1 and 2
workers and in batches of 4, the same as a Prefect flow, and on a Dask cluster; what the flow costs in % of
a study's time, and for how many studies a day that is enough.

    python -m evaluation.night [--studies 20] [--rounds 5] [--checkpoint A] [--out DIR] [--only bare,1,2]

Copies of one chest phantom lie in the inbox of a ledger of their own, READY; each arm drafts all of them with
the real model, writes the documents and holds them. Nothing is pulled or delivered, so that no PACS is
measured: what that takes overlaps with drafting. Each arm runs in a process of its own. The first studies,
which load the models, do not count: time runs from the last of them to the last of all. In a round every arm
has its turn, and what is compared is compared within it: medians over the rounds, lowest and highest.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from evaluation.targets import Spread
from evaluation.telling import tell
from mla_med.errors import ConfigError, MlaMedError

SEED = 3_998_000_002
"""Of a cohort that nobody trains on."""
MATRIX = 512
ARMS = ("bare", "1", "batch", "2", "prefect", "dask")
BATCH = 4
WORDS = {
    "bare": "bare loop over draft_one, one process",
    "1": "night, 1 worker",
    "batch": f"night, 1 worker, batches of up to {BATCH}",
    "2": "night, 2 workers",
    "prefect": "night as a Prefect flow, 1 worker",
    "dask": "night on a Dask cluster, 2 processes",
}
NIGHT_HOURS = 10.0
NEEDS = {"a hospital of 500 CTs a day": 500, "a network of 50 such hospitals": 25_000}


@dataclass(frozen=True, slots=True)
class Row:
    arm: str
    studies: int
    seconds: float
    """Of all of them."""
    memory_mb: float
    """The largest resident set of any one of its processes."""

    @property
    def per_hour(self) -> float:
        return 3600 * self.studies / self.seconds


def run(studies: int, arms: Sequence[str], checkpoint: str = "", rounds: int = 1) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="mla_med-") as name:
        folder = Path(name)
        write_phantom(folder / "phantom")
        rows = []
        for number in range(rounds):
            # forth and back, so that no arm always comes after the same one
            for arm in arms if number % 2 == 0 else reversed(arms):
                rows.append(_apart(arm, studies, folder, checkpoint))
                words = f"{number + 1}/{rounds} {WORDS[arm]}: {rows[-1].per_hour:.0f} studies an hour"
                print(words, file=sys.stderr, flush=True)
                shutil.rmtree(folder / arm, ignore_errors=True)
        return rows


def write_phantom(folder: Path) -> None:
    from mla_med.phantom.examine import examine
    from mla_med.phantom.scanning import write_dicom
    from mla_med.phantom.sites import site_of

    write_dicom(examine(SEED, "chest_ct", site_of("a")), folder, matrix=MATRIX)


def _apart(arm: str, studies: int, folder: Path, checkpoint: str) -> Row:
    """In a process of its own, which ends with its threads, model and server."""
    command = ("-m", "evaluation.night", "--arm", arm, str(folder), "--studies", str(studies))
    done = subprocess.run(
        [sys.executable, *command, "--checkpoint", checkpoint],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PREFECT_HOME": str(folder / "prefect"), "PREFECT_LOGGING_LEVEL": "ERROR"},
        check=False,
    )
    if done.returncode:
        raise ConfigError(f"The arm {arm} ended with {done.returncode}; its own words stand above.")
    return Row(**json.loads(done.stdout.splitlines()[-1]))


def run_arm(arm: str, folder: Path, studies: int, checkpoint: str) -> Row:
    if arm == "bare":
        return _bare(folder, studies, checkpoint)
    workers = 2 if arm in ("2", "dask") else 1
    batch = BATCH if arm == "batch" else 1
    warm = 2 * workers * batch  # as many as are under work at once
    with empty_pacs() as url, _cluster(arm) as dask:
        night = {"workers": workers, "batch": batch, "checkpoint": checkpoint, "dask": dask, "hold": True}
        settings_file = make_site(folder / arm, url, folder / "phantom" / "study", studies + warm, night)
        if arm == "prefect":
            # not imported: flows stand above this
            command = (sys.executable, "-m", "flows.nightly", str(settings_file))
            subprocess.run(command, check=True, stdout=sys.stderr)
        else:
            from mla_med.night.run import whole_night

            whole_night(settings_file)
        times = _ends(settings_file)
    if len(times) != studies + warm:
        raise ConfigError(f"{len(times)} of {studies + warm} studies were drafted in the arm {arm}.")
    return Row(arm, studies, times[-1] - times[warm - 1], _memory_mb())


@contextmanager
def _cluster(arm: str) -> Iterator[str]:
    """The address of a Dask cluster of two processes on this machine; none for the other arms."""
    if arm != "dask":
        yield ""
        return
    from distributed import LocalCluster

    from mla_med.night.pool import threads_of

    os.environ.update(threads_of(2))
    with LocalCluster(n_workers=2, threads_per_worker=2, dashboard_address=None) as cluster:
        yield cluster.scheduler_address


@contextmanager
def empty_pacs() -> Iterator[str]:
    """A DICOMweb address that knows no studies."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def _ends(settings_file: Path) -> list[float]:
    from mla_med.night.loop import open_site

    with open_site(settings_file) as site:
        return sorted(standing.changed_s for standing in site.claims.standing("HELD"))


def _memory_mb() -> float:
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(kind).ru_maxrss for kind in kinds) / 1024


def _bare(folder: Path, studies: int, checkpoint: str) -> Row:
    from mla_med.dicom.apart import ReaderProcess
    from mla_med.dicom.study import read_studies
    from mla_med.drafting import draft_one, packaged_for
    from mla_med.model.checkpoint import load_checkpoint

    model = load_checkpoint(Path(checkpoint)) if checkpoint else packaged_for
    times = []
    with ReaderProcess() as reader:
        for number in range(studies + 1):
            start = time.perf_counter()
            study = reader.call(read_studies, folder / "phantom" / "study")
            draft_one(study, folder / "bare" / str(number), model, call=reader.call)
            times.append(time.perf_counter() - start)
    return Row("bare", studies, sum(times[1:]), _memory_mb())


def make_site(folder: Path, url: str, study: Path, count: int, night: dict[str, object]) -> Path:
    """So many READY jobs of copies of one study, as `pacs pull` leaves them."""
    from pydicom import dcmread

    from mla_med.pacs.pull import folder_of
    from mla_med.pacs.run import open_ledger
    from mla_med.pacs.settings import read_settings

    folder.mkdir(parents=True)
    places = {"ledger_url": f"sqlite:///{folder / 'ledger.db'}", "key_file": str(folder / "site.key")}
    places |= {"dicomweb_url": url, "inbox": str(folder / "inbox")}
    limits = {"check_with_dciodvfy": "off", "max_used": 1.0, "min_free_bytes": 0}
    night |= {"out": str(folder / "drafts"), "records": str(folder / "nights")}
    settings_file = folder / "mla-med.toml"
    lines = [
        *("[pacs]", *(f"{key} = {json.dumps(value)}" for key, value in (places | limits).items())),
        *("[night]", *(f"{key} = {json.dumps(value)}" for key, value in night.items())),
    ]
    settings_file.write_text("\n".join(lines) + "\n")
    pacs = read_settings(settings_file)
    book = open_ledger(pacs)
    files = sorted(study.rglob("*.dcm"))
    for number in range(count):
        uid = f"2.25.{SEED}{number:06d}"
        job = book.see(uid, len(files))
        to = folder_of(pacs, job.id)
        to.mkdir(parents=True)
        for k, path in enumerate(files):
            image = dcmread(path)
            image.SeriesInstanceUID = f"{uid}.{int(image.SeriesNumber or 0)}"
            image.StudyInstanceUID = uid
            image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = f"{uid}.9.{k}"
            image.save_as(to / f"{k:06d}.dcm", enforce_file_format=True)
        book.ready(job.id, len(files))
    book.close()
    return settings_file


def to_markdown(rows: Sequence[Row], cores: int) -> str:
    """Rows: of each arm as many as rounds, in their order."""
    speeds: dict[str, list[float]] = {}
    memory: dict[str, float] = {}
    for row in rows:
        speeds.setdefault(row.arm, []).append(row.per_hour)
        memory[row.arm] = max(row.memory_mb, memory.get(row.arm, 0))
    lines = [
        "| | studies/hour | x bare loop | s a study | MB, largest process |",
        "|---|---|---|---|---|",
    ]
    for arm in (arm for arm in ARMS if arm in speeds):
        speed = Spread.of(speeds[arm])
        ratio = _times(speeds, arm, "bare")
        lines.append(
            f"| {WORDS[arm]} | {speed.to_text()} | {f'{ratio.median:.2f}' if ratio else ''} "
            f"| {3600 / speed.median:.2f} | {memory[arm]:.0f} |"
        )
    lines.append("")
    if longer := _times(speeds, "1", "prefect"):
        lines += [
            f"The flow costs {longer.median - 1:+.1%} of a study's time ({longer.lowest - 1:+.1%} to "
            f"{longer.highest - 1:+.1%} in {len(speeds['1'])} rounds; target: at most 10 %).",
        ]
    if gain := _times(speeds, "batch", "1"):
        lines.append(f"Batches of up to {BATCH} draft x{gain.median:.2f} of what one at a time does.")
    if scale := _times(speeds, "2", "1"):
        lines.append(f"Two workers draft x{scale.median:.2f} of what one does, on {cores} cores.")
    best = max(Spread.of(values).median for values in speeds.values())
    for words, studies in NEEDS.items():
        machines = max(1, math.ceil(studies / (best * NIGHT_HOURS)))
        lines.append(f"For {words}, in {NIGHT_HOURS:g} hours: {machines} such machines.")
    return "\n".join(lines) + "\n"


def _times(speeds: Mapping[str, Sequence[float]], arm: str, by: str) -> Spread | None:
    """How many times as fast as another, within each round; None if either did not run."""
    return Spread.of_ratios(speeds[arm], speeds[by]) if arm in speeds and by in speeds else None


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--studies", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--checkpoint", default="")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--only", default=",".join(ARMS), help="arms, by commas: " + ", ".join(ARMS))
    parser.add_argument("--arm", nargs=2, metavar=("ARM", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    try:
        if given.arm:
            arm, folder = given.arm
            row = run_arm(arm, Path(folder), given.studies, given.checkpoint)
            print("\n" + json.dumps(asdict(row)))
            return
        arms = given.only.split(",")
        if unknown := sorted(set(arms) - set(ARMS)):
            raise ConfigError(f"No arm '{unknown[0]}'; there are: {', '.join(ARMS)}.", code="NO_ARM")
        rows = run(given.studies, arms, given.checkpoint, given.rounds)
        words = to_markdown(rows, len(os.sched_getaffinity(0)))
        tell("night", words, [asdict(row) for row in rows], given.out)
    except MlaMedError as error:
        sys.exit(f"{error.code}: {error}")


if __name__ == "__main__":
    main()
