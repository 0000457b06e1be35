"""How soon the first slice of a CT of 300 slices is seen, and how its stack scrolls.

python tests/bench_viewer.py

The real app on loopback, a real Chromium. Prints one line a measure; asserts nothing. Drawn by the processor
where the machine has no graphics card.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from dicom_series import write_series
from playwright.sync_api import sync_playwright
from review_site import PASSWORD, Site, served

from mla_med.dicom.study import read_study
from mla_med.dicom.volume import read_volume
from mla_med.documents.write import write_documents
from mla_med.pacs.deliver import commit_documents
from mla_med.report.render import render_report
from mla_med.types import Draft, Evidence, Finding, Gate, Provenance, SeriesVerdict, Side

SLICES, EDGE, VISITS = 300, 512, 7
SCROLL = """async n => {
  const stage = document.querySelector('#viewer .v-stage');
  const seen = new Set(), frames = [];
  let last = performance.now();
  for (let k = 0; k < n; k++) {
    stage.dispatchEvent(new WheelEvent('wheel', {deltaY: 100, bubbles: true, cancelable: true}));
    await new Promise(requestAnimationFrame);
    const now = performance.now();
    frames.push(now - last);
    last = now;
    seen.add(stage.dataset.slice);
  }
  frames.sort((a, b) => a - b);
  return [seen.size, frames[Math.floor(n / 2)], frames[Math.floor(n * 0.95)], frames[n - 1]];
}"""


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="bench-viewer-"))
    try:
        site = Site(folder)
        job = add(site, folder / "study")
        with served(site) as url:
            measure(url, job)
    finally:
        shutil.rmtree(folder)


def add(site: Site, folder: Path) -> str:
    rng = np.random.default_rng(0)
    body = np.full((EDGE, EDGE), 24)
    y, x = np.ogrid[:EDGE, :EDGE]
    body[(x - 256) ** 2 / 220**2 + (y - 256) ** 2 / 150**2 < 1] = 1064

    def slice_of(k: int) -> np.ndarray:
        return body + rng.integers(-20, 20, body.shape) + k % 7

    write_series(folder, [1.0 * k for k in range(SLICES)], stored=slice_of)
    study = read_study(folder)
    volume = read_volume(study.series[0])
    place = tuple(tuple(volume.affine[:3, :3] @ [256, 256, 150] + volume.affine[:3, 3] + d) for d in (-9, 9))
    cited = Evidence((volume.series.instances[150].sop_instance_uid,), place)  # type: ignore[arg-type]
    nodule = Finding(
        "lung_nodule", site="upper_lobe", side=Side.RIGHT, size_mm=9.0, confidence=0.9, evidence=cited
    )
    draft = Draft(
        report=render_report([nodule]),
        gate=Gate(True),
        verdicts=(SeriesVerdict(volume.series, volume.certificate, None, chosen=True),),
        modal_weights={},
        provenance=Provenance("m", "1", "ab" * 32, study.study_uid, (), "2026-11-05T09:30:12+00:00"),
    )
    job = site.book.see(study.study_uid, 1)
    site.book.ready(job.id, 1)
    inbox = Path(site.pacs.inbox) / job.id
    inbox.parent.mkdir(parents=True, exist_ok=True)
    folder.rename(inbox)
    documents = write_documents(draft, formats=("sr", "json"), source=next(inbox.iterdir()))
    (site.drafts / job.id).mkdir(parents=True)
    for document in documents:
        (site.drafts / job.id / document.file_name).write_bytes(document.content)
    contents = [d.content for d in documents if d.reference]
    commit_documents(site.book, contents, "main", job_id=job.id, validate="off")
    site.desk.scan()
    return job.id


def measure(url: str, job: str) -> None:
    with sync_playwright() as running:
        browser = running.chromium.launch(executable_path=shutil.which("chromium"))
        page = browser.new_page(base_url=url, viewport={"width": 1440, "height": 900})
        page.set_default_timeout(120_000)
        page.goto("/sign-in")
        page.fill("input[name=name]", "reader")
        page.fill("input[name=password]", PASSWORD)
        page.click("main button")
        page.wait_for_url("**/")
        first, whole = [], []
        for _ in range(VISITS):
            page.goto(f"/drafts/{job}")
            page.wait_for_selector("#viewer .v-stage[data-drawn=true]")
            first.append(float(page.get_attribute("#viewer", "data-first-slice-ms")))
            page.wait_for_selector("#viewer .v-stage[data-complete=true]")
            whole.append(page.evaluate("performance.now()"))
        times = f"median {median(first):.0f} ms, first visit {first[0]:.0f}, worst {max(first):.0f}"
        print(f"first slice of {SLICES}: {times}")
        print(f"all slices: median {median(whole):.0f} ms")
        page.keyboard.press("Tab")
        slices, half, slow, worst = page.evaluate(SCROLL, 120)
        frames = f"a frame {half:.0f} ms, 95 % {slow:.0f}, worst {worst:.0f}"
        print(f"scrolling: {slices} slices in 120 notches; {frames}")
        browser.close()


if __name__ == "__main__":
    main()
