"""The pictures of docs/review.md and of the README: phantoms, drafted by the packaged models, in Chromium.

python tests/shots_review.py [FOLDER]

Into docs, or into FOLDER. Phantoms and drafts are made once and kept in the system's temporary folder.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from playwright.sync_api import Browser, Page, sync_playwright
from review_site import PASSWORD, Site, served

from mla_med.demo import DEMO_SEED
from mla_med.dicom.study import read_study
from mla_med.dicom.volume import read_volume
from mla_med.documents.html import draft_to_html
from mla_med.documents.json import draft_from_json
from mla_med.drafting import Options, draft_folder, draft_one, packaged_for
from mla_med.model import CHECKPOINTS
from mla_med.pacs.deliver import commit_documents
from mla_med.phantom.examine import examine
from mla_med.phantom.scanning import write_dicom
from mla_med.phantom.sites import site_of
from mla_med.review.nouns import Filter, OutcomeRow

KEPT = Path(tempfile.gettempdir()) / "mla_med_shots"
CASES = {
    "chest": ("chest_ct", 0, ("pleural_effusion", "cardiomegaly", "pneumothorax")),
    "chest2": ("chest_ct", 1, ("lung_mass",)),
    "normal": ("chest_ct", 2, ()),
    "brain": ("brain_mr", 3, ("acute_infarct", "white_matter_hyperintensity")),
    "short": ("chest_ct", 4, ("consolidation",)),
}
"""Examination, which patient, and what is planted. Of `short` the half is missing; `chest` has a prior."""
PAGE = ".shots_draft.html"
WITH_WEBGL = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader")


def main() -> None:
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "docs"
    out.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="shots-"))
    try:
        site = Site(folder)
        site.clock.now = time.time() - 4 * 86_400
        jobs = {}
        for name in CASES:
            jobs[name] = add(site, name)
            site.clock.now += 17_000
        site.clock.now = time.time()
        history(site)
        with served(site) as url, sync_playwright() as running:
            browser = running.chromium.launch(executable_path=shutil.which("chromium"), args=WITH_WEBGL)
            take(browser, url, jobs, out)
            browser.close()
    finally:
        shutil.rmtree(folder)


def drafted(name: str) -> Path:
    """The folder of a case: the phantom's images in dicom/study, its draft in draft."""
    examination, seed, codes = CASES[name]
    made = KEPT / name
    version = json.loads((CHECKPOINTS[examination] / "checkpoint.json").read_text())["version"]
    done = made / f"drafted-{version}"
    if done.exists():
        return made
    if not (made / "dicom").exists():
        made.mkdir(parents=True, exist_ok=True)
        prior = float(name == "chest")
        examined = examine(DEMO_SEED + seed, examination, site_of("a"), prior_share=prior, codes=codes)
        write_dicom(examined, made / "dicom", matrix=256)
        if name == "short":
            for series in sorted(p for p in (made / "dicom/study").iterdir() if p.is_dir()):
                images = sorted(series.glob("*.dcm"))
                for path in images[len(images) // 2 :]:
                    path.unlink()
    shutil.rmtree(made / "draft", ignore_errors=True)
    study, earlier = made / "dicom/study", made / "dicom/prior"
    if earlier.exists():
        study_ = read_study(study)
        options = Options(prior=read_study(earlier))
        draft_one([study_], made / "draft", packaged_for(study_), options=options)
    else:
        draft_folder(study, made / "draft")
    done.touch()
    return made


def add(site: Site, name: str) -> str:
    made = drafted(name)
    draft = draft_from_json(json.loads((made / "draft/draft.json").read_text()))
    job = site.book.see(draft.provenance.study_uid, 1)
    site.book.ready(job.id, 1)
    shutil.copytree(made / "dicom", Path(site.pacs.inbox) / job.id)
    shutil.copytree(made / "draft", site.drafts / job.id)
    contents = [path.read_bytes() for path in (made / "draft").glob("*.dcm")]
    commit_documents(site.book, contents, "main", job_id=job.id, validate="off")
    site.desk.scan()
    return job.id


def history(site: Site) -> None:
    """Decisions of the last weeks, for the drift page: made up, and all of them of nobody."""
    rng = np.random.default_rng(11)
    item = site.store.page(Filter(states=(), examination="chest_ct"), None, 1)[0]
    now = site.clock.now
    codes = ("pleural_effusion", "lung_nodule", "cardiomegaly", "consolidation", "pneumothorax")
    scanners = ("SIEMENS SOMATOM Force", "GE Revolution CT", "Canon Aquilion ONE")
    for n in range(140):
        site.clock.now = now - float(rng.uniform(1, 60)) * 86_400
        job_id = f"{n + 1:032x}"
        group = f"{rng.choice(['F', 'M'])} {rng.choice(['20-39', '40-59', '60-79'])}"
        there = replace(
            item,
            job_id=job_id,
            state="NEW",
            scanner=str(rng.choice(scanners)),
            subgroup=group,
            arrived_at_s=site.clock.now - 4000,
            drafted_at_s=site.clock.now - float(rng.exponential(5000)),
        )
        site.store.put(there, {})
        became = rng.choice(["kept", "changed", "removed"], 2, p=[0.85, 0.08, 0.07])
        which = rng.choice(codes, 2, replace=False)
        rows = [
            OutcomeRow(str(code), str(outcome), "present", "present", 0.9)
            for code, outcome in zip(which, became, strict=True)
        ]
        decision = str(rng.choice(["ACCEPTED", "CHANGED", "REJECTED"], p=[0.72, 0.2, 0.08]))
        site.store.open_draft(job_id, "reader")
        site.clock.now += float(rng.exponential(150))
        made = site.store.decide(
            job_id, 0, "reader", decision, "OTHER" if decision == "REJECTED" else "", b"{}", rows
        )
        site.store.sent(made)
    site.clock.now = now


def take(browser: Browser, url: str, jobs: dict[str, str], out: Path) -> None:
    page = enter(browser, url, "light", "reader")
    page.wait_for_timeout(1000)  # names come by themselves
    page.screenshot(path=out / "review_worklist.png")
    read(page, jobs["chest"])
    page.click("textarea[data-findings]:not([data-findings=''])")
    page.wait_for_timeout(500)
    page.screenshot(path=out / "review_draft.png")
    page.close()
    page = enter(browser, url, "dark", "reader")
    page.click("button[lang=zh]")
    for case, name in (("chest", "review_draft_zh"), ("short", "review_refused_zh")):
        read(page, jobs[case])
        page.wait_for_timeout(500)
        page.screenshot(path=out / f"{name}.png")
    page.click("button[lang=en]")
    page.close()
    page = enter(browser, url, "light", "reader")
    read(page, jobs["chest2"])
    page.fill("[data-finding=lung_mass] input[name=size_mm]", "51")
    page.keyboard.press("Tab")
    page.wait_for_function("() => document.querySelector('#version').value !== '0'")
    page.on("dialog", lambda dialog: dialog.accept())
    page.click(".decide button.main")
    page.wait_for_url(lambda there: jobs["chest2"] not in there)
    read(page, jobs["chest2"])
    page.wait_for_timeout(500)
    page.screenshot(path=out / "review_decided.png")
    page.close()
    page = enter(browser, url, "light", "admin")
    page.goto("/drift")
    page.screenshot(path=out / "review_drift.png")
    page.close()
    page = browser.new_page(viewport={"width": 1200, "height": 1400})
    page.goto(without_server(out).as_uri())
    page.screenshot(path=out / "draft.png")
    page.close()
    (out / PAGE).unlink()


def without_server(out: Path) -> Path:
    """The page of the chest as it is written today, whenever it was drafted."""
    draft = draft_from_json(json.loads((KEPT / "chest/draft/draft.json").read_text()))
    chosen = {v.series.series_uid for v in draft.verdicts if v.chosen}
    series = [s for s in read_study(KEPT / "chest/dicom/study").series if s.series_uid in chosen]
    page = draft_to_html(draft, [read_volume(one) for one in series])
    (out / PAGE).write_text(page, encoding="utf-8")
    return (out / PAGE).absolute()


def enter(browser: Browser, url: str, scheme: str, name: str) -> Page:
    page = browser.new_page(
        base_url=url,
        viewport={"width": 1440, "height": 900},
        color_scheme="dark" if scheme == "dark" else "light",
    )
    page.set_default_timeout(120_000)
    page.goto("/sign-in")
    page.fill("input[name=name]", name)
    page.fill("input[name=password]", PASSWORD)
    page.click("main button")
    page.wait_for_url("**/")
    return page


def read(page: Page, job: str) -> None:
    page.goto(f"/drafts/{job}")
    page.wait_for_selector("#viewer .v-stage[data-complete=true]")


if __name__ == "__main__":
    main()
