"""The page in a real Chromium against a real Orthanc: what a radiologist does, seen from outside.

Debian's chromium driven by Playwright, in a network namespace that holds the loopback and nothing else.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from phantoms import patient
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset
from review_site import PASSWORD, Site, made, served

from mla_med.dicom.study import read_study
from mla_med.dicom.volume import describe, read_volume
from mla_med.documents.write import write_documents
from mla_med.pacs.deliver import commit_documents, deliver_due
from mla_med.pacs.settings import Credentials, PacsSettings
from mla_med.pacs.web import WebPeer
from mla_med.report.render import render_report
from mla_med.report.style import load_style
from mla_med.types import (
    Comparison,
    Draft,
    Evidence,
    Finding,
    Gate,
    HeatCell,
    Presence,
    Prior,
    Provenance,
    Reason,
    SeriesVerdict,
    Side,
    Volume,
)

sync_api = pytest.importorskip("playwright.sync_api", reason="the extra dev has playwright")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.skipif(not os.environ.get("MLA_MED_SLOW"), reason="takes minutes: MLA_MED_SLOW=1"),
    pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed"),
]

WITH_WEBGL = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader")
WITHOUT_WEBGL = ("--disable-gpu", "--disable-3d-apis")
AXE = Path(__file__).parents[1] / "mla_med/review/viewer/node_modules/axe-core/axe.min.js"
CODES = ("lung_mass", "pleural_effusion", "cardiomegaly")
TABBABLE = """() => [...document.querySelectorAll(
    'a[href], button, input:not([type=hidden]), select, textarea, summary, [tabindex="0"]'
)].filter(e => e.checkVisibility() && !e.disabled && e.tabIndex >= 0)
  .map((e, n) => (e.dataset.tabbed = n, n))"""
"""Numbers everything that a tab key should come to."""
LONG_MS = 60_000
"""Software that draws in the place of a graphics card, on a machine that does other things too."""


@dataclass
class World:
    site: Site
    url: str
    peer: WebPeer
    volume: Volume
    slices: dict[str, int] = field(default_factory=dict)
    """The key slice of each code."""

    def add(self, study: Path) -> str:
        """A phantom's draft in the ledger, on the worklist and in the PACS; another patient each time would
        be another study, so the draft is made at another second."""
        draft = drafted(self.volume, self.slices)
        job = self.site.book.see(draft.provenance.study_uid, 1)
        self.site.book.ready(job.id, 1)
        inbox = Path(self.site.pacs.inbox) / job.id
        if not inbox.exists():
            shutil.copytree(study, inbox)
        source = self.volume.series.instances[0].path
        documents = write_documents(draft, formats=("sr", "json"), source=source)
        folder = self.site.drafts / job.id
        folder.mkdir(parents=True)
        for document in documents:
            (folder / document.file_name).write_bytes(document.content)
        sent = [d.content for d in documents if d.reference]
        commit_documents(self.site.book, sent, "main", job_id=job.id, validate="off")
        self.deliver()
        self.site.desk.scan()
        return job.id

    def deliver(self) -> None:
        deliver_due(self.site.book, self.peer, "main", workers=1)


def drafted(volume: Volume, slices: dict[str, int]) -> Draft:
    """What a model would have said had it been right."""
    examined = patient(*CODES)
    boxes = {lesion.finding.code: lesion.box_mm for lesion in examined.lesions}
    inverse = np.linalg.inv(volume.affine)

    def seen(finding: Finding) -> Finding:
        finding = replace(finding, confidence=0.91, change=None)
        box = boxes.get(finding.code)
        if box is None or finding.presence is not Presence.PRESENT:
            return finding
        k = int(
            np.clip(round(float((inverse @ [*np.mean(box, axis=0), 1])[2])), 0, volume.voxels.shape[2] - 1)
        )
        slices[finding.code] = k
        cited = (volume.series.instances[k].sop_instance_uid,)
        return replace(finding, evidence=Evidence(cited, box, 1.2, 0.97, (HeatCell(box, 1.0),)))

    report = render_report(
        [seen(f) for f in examined.findings], load_style("prose", "en"), "chest_ct", "CT of the chest."
    )
    earlier = replace(volume.series, instances=volume.series.instances[::-1])
    uid = read_study(volume.series.instances[0].path.parent.parent).study_uid
    return Draft(
        report=report,
        gate=Gate(True, (), {"lung_share": 0.2}),
        verdicts=(SeriesVerdict(volume.series, volume.certificate, None, chosen=True, why="the only one"),),
        modal_weights={"image": 0.7, "text": 0.3},
        provenance=Provenance(
            "mla", "0.1", "ab" * 32, uid, (volume.series.series_uid,), "2026-11-05T09:30:12+00:00"
        ),
        prior=Prior(
            "2.25.2",
            "20250708",
            (earlier,),
            tuple(
                Comparison(f.code, None, "41 mm now, 30 mm then", f.side, f.site, f.size_mm)
                for f in report.findings
                if f.code == "lung_mass"
            ),
        ),
    )


@pytest.fixture(scope="module")
def world(running, phantom_study, tmp_path_factory) -> Iterator[World]:
    """The real app behind a real server, and a real PACS with the study in it."""
    study = phantom_study(*CODES)
    for path in sorted(study.rglob("*.dcm")):
        running.upload(path.read_bytes())
    (series,) = (s for s in read_study(study).series if len(s.instances) > 20)
    volume = describe(read_volume(series))
    site = Site(tmp_path_factory.mktemp("site"))
    peer = WebPeer(PacsSettings(dicomweb_url=running.dicomweb_url, timeout_s=20.0), Credentials())
    with served(site) as url:
        made = World(site, url, peer, volume)
        made.job = made.add(study)
        yield made


@pytest.fixture(scope="module")
def playwright(network):
    with sync_api.sync_playwright() as running:
        yield running


@pytest.fixture(scope="module")
def chromium(playwright):
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=WITH_WEBGL)
    yield browser
    browser.close()


@dataclass
class Visit:
    """A page, and what it asked for and complained about."""

    page: object
    asked: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)


def visit(browser, world: World, scheme: str = "light", name: str = "reader") -> Visit:
    """`name`: empty for nobody."""
    page = browser.new_page(base_url=world.url, viewport={"width": 1440, "height": 900}, color_scheme=scheme)
    page.set_default_timeout(LONG_MS)
    made = Visit(page)
    page.on("request", lambda request: made.asked.append(request.url))
    page.on("console", lambda message: made.said.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: made.said.append(str(error)))
    if name:
        page.goto("/sign-in")
        page.fill("input[name=name]", name)
        page.fill("input[name=password]", PASSWORD)
        page.click("main button")
        page.wait_for_url("**/")
    return made


@pytest.fixture
def reading(chromium, world) -> Iterator[Visit]:
    """The draft, open, with all its images."""
    made = visit(chromium, world)
    made.page.goto(f"/drafts/{world.job}")
    made.page.wait_for_selector("#viewer .v-stage[data-complete=true]")
    yield made
    made.page.close()


def stage(page, name: str, of: str = "#viewer .v-stage") -> str:
    return page.get_attribute(of, f"data-{name}")


def pixels(page, of: str = "#viewer .v-stage canvas.v-2d") -> np.ndarray:
    """Of the canvas, as it is on the screen."""
    return np.asarray(Image.open(io.BytesIO(page.locator(of).first.screenshot())).convert("L")).astype(int)


def sentence_of(page, word: str) -> str:
    """A selector for the first sentence with this word."""
    number = page.evaluate(
        "word => [...document.querySelectorAll('textarea[data-sentence]')]"
        ".find(s => s.value.toLowerCase().includes(word)).dataset.sentence",
        word,
    )
    return f"[data-sentence='{number}']"


def wait_slice(page, k: int) -> None:
    page.wait_for_selector(f"#viewer .v-stage[data-slice='{k}']")


def test_a_click_on_a_sentence_shows_the_slice_that_it_stands_on(reading, world):
    page = reading.page
    page.click(sentence_of(page, "effusion"))
    wait_slice(page, world.slices["pleural_effusion"])
    before = pixels(page)
    page.click(sentence_of(page, "mass"))
    wait_slice(page, world.slices["lung_mass"])
    page.wait_for_timeout(100)
    assert world.slices["lung_mass"] != world.slices["pleural_effusion"]
    assert (np.abs(pixels(page) - before) > 20).mean() > 0.02
    assert page.get_attribute(sentence_of(page, "mass"), "aria-current") == "true"
    assert page.get_attribute(sentence_of(page, "effusion"), "aria-current") is None
    assert "mass" in page.inner_text(".v-caption").lower()


def test_a_click_on_a_lesion_marks_its_sentence(reading, world):
    page = reading.page
    page.click(sentence_of(page, "mass"))
    wait_slice(page, world.slices["lung_mass"])
    mass = stage(page, "boxes").split()[-1]  # the selected one is drawn last
    page.click(sentence_of(page, "effusion"))
    page.focus("#viewer .v-stage")
    at = page.evaluate(
        """([k, n]) => {
            const stage = document.querySelector('#viewer .v-stage');
            const slider = stage.querySelector('.v-slider');
            slider.value = k + 1;
            slider.dispatchEvent(new Event('input'));
            return null;
        }""",
        [world.slices["lung_mass"], mass],
    )
    assert at is None
    wait_slice(page, world.slices["lung_mass"])
    x, y = page.evaluate(
        "n => JSON.parse(document.querySelector('#viewer .v-stage').dataset.places)[n]", mass
    )
    page.mouse.click(x, y)
    page.wait_for_selector(f"{sentence_of(page, 'mass')}[aria-current=true]")
    assert page.get_attribute(sentence_of(page, "effusion"), "aria-current") is None


def test_a_key_moves_one_slice_and_the_wheel_one_a_notch_towards_the_feet(reading, world):
    page = reading.page
    page.click(sentence_of(page, "mass"))
    k = world.slices["lung_mass"]
    wait_slice(page, k)
    page.focus("#viewer .v-stage")
    page.keyboard.press("ArrowDown")
    wait_slice(page, k - 1)  # slices are numbered from the feet
    page.keyboard.press("PageUp")
    wait_slice(page, k + 9)
    box = page.locator("#viewer .v-stage").bounding_box()
    page.mouse.move(box["x"] + 200, box["y"] + 200)
    page.mouse.wheel(0, 100)
    wait_slice(page, k + 8)
    page.keyboard.press("Home")
    top = world.volume.voxels.shape[2] - 1
    wait_slice(page, top)
    assert stage(page, "slice") == str(top)


def test_windows_boxes_and_the_heat_map_change_what_is_seen(reading, world):
    page = reading.page
    page.click(sentence_of(page, "mass"))
    wait_slice(page, world.slices["lung_mass"])
    page.click("[data-window=lung]")
    page.wait_for_timeout(200)
    lung = pixels(page)
    page.click("[data-window=bone]")
    page.wait_for_timeout(200)
    assert (np.abs(pixels(page) - lung) > 20).mean() > 0.1
    with_boxes = pixels(page, "#viewer .v-stage")
    page.click("[data-toggle=heat]")
    page.wait_for_timeout(200)
    with_heat = pixels(page, "#viewer .v-stage")
    assert (np.abs(with_heat - with_boxes) > 5).any()
    page.click("[data-toggle=heat]")
    page.click("[data-toggle=boxes]")
    page.wait_for_selector("#viewer .v-stage[data-boxes='']")


def test_three_planes_are_drawn_by_niivue_where_the_stack_was(reading, world):
    page = reading.page
    page.click(sentence_of(page, "mass"))
    wait_slice(page, world.slices["lung_mass"])
    page.click("[data-mode=planes]")
    page.wait_for_selector("#viewer .v-stage[data-renderer=niivue]")
    page.wait_for_timeout(300)
    seen = pixels(page, "#viewer .v-stage")
    middle = seen.shape[1] * 6 // 10
    for part in (seen[:, :middle], seen[: len(seen) // 2, middle:], seen[len(seen) // 2 :, middle:]):
        assert part.std() > 20
    assert stage(page, "slice") == str(world.slices["lung_mass"])
    assert not reading.said


def test_the_planes_of_niivue_lie_where_ours_lie(reading, playwright, world):
    """The painter and NiiVue are strangers to each other: the same pixels mean that both are right."""
    page = reading.page
    page.click(sentence_of(page, "mass"))
    wait_slice(page, world.slices["lung_mass"])
    page.click("[data-toggle=boxes]")
    page.click("[data-mode=planes]")
    page.wait_for_selector("#viewer .v-stage[data-renderer=niivue]")
    page.wait_for_timeout(300)
    niivue = pixels(page, "#viewer .v-stage")
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=WITHOUT_WEBGL)
    try:
        other = visit(browser, world).page
        other.goto(f"/drafts/{world.job}")
        other.wait_for_selector("#viewer .v-stage[data-complete=true]")
        other.click(sentence_of(other, "mass"))
        other.click("[data-toggle=boxes]")
        other.click("[data-mode=planes]")
        other.wait_for_selector("#viewer .v-stage[data-mode=planes][data-renderer='2d']")
        other.wait_for_timeout(300)
        assert "WebGL" in other.inner_text(".v-caption")
        painted = pixels(other, "#viewer .v-stage")
    finally:
        browser.close()
    assert niivue.shape == painted.shape
    assert np.corrcoef(niivue.ravel(), painted.ravel())[0, 1] > 0.97


def test_the_prior_stands_beside_it_with_what_was_measured_and_scrolls_along(reading, world):
    page = reading.page
    page.click(sentence_of(page, "mass"))
    wait_slice(page, world.slices["lung_mass"])
    page.click("[data-prior]")
    prior = ".v-prior .v-stage"
    page.wait_for_selector(f"{prior}[data-complete=true]")
    assert "41 mm now, 30 mm then" in page.inner_text(".v-compared")
    assert stage(page, "slice", prior) == stage(page, "slice")  # the same images, read from the other end
    page.focus("#viewer .v-stage")
    page.keyboard.press("PageDown")
    page.wait_for_selector(f"{prior}[data-slice='{world.slices['lung_mass'] - 10}']")
    page.click("[data-prior]")
    assert page.locator(prior).count() == 0


def test_in_chinese_the_viewer_speaks_chinese(reading, world):
    page = reading.page
    page.click("button[lang=zh]")
    page.wait_for_selector("#viewer .v-stage[data-complete=true]")
    assert page.inner_text("[data-window=lung]") == "肺窗"
    assert page.inner_text("[data-mode=planes]") == "三平面"
    page.click("button[lang=en]")
    page.wait_for_selector("#viewer .v-stage[data-complete=true]")


def test_nothing_is_asked_of_another_machine_and_nothing_breaks_the_content_policy(chromium, world):
    made = visit(chromium, world)
    page = made.page
    page.goto(f"/drafts/{world.job}")
    page.wait_for_selector("#viewer .v-stage[data-complete=true]")
    page.click("[data-mode=planes]")
    page.wait_for_selector("#viewer .v-stage[data-renderer=niivue]")
    page.click("[data-prior]")
    page.wait_for_selector(".v-prior .v-stage[data-complete=true]")
    assert made.asked
    assert not [url for url in made.asked if not url.startswith((world.url, "data:", "blob:"))]
    assert not made.said
    page.close()


PAGES = {
    "sign-in": ("", "/sign-in"),
    "worklist": ("reader", "/"),
    "draft": ("reader", "/drafts/{job}"),
    "versions": ("reader", "/drafts/{job}/versions"),
    "refused": ("reader", "/drafts/{refused}"),
    "decided": ("reader", "/drafts/{decided}"),
    "nothing": ("reader", "/nowhere"),
    "drift": ("admin", "/drift"),
    "audit": ("admin", "/audit"),
    "readers": ("admin", "/users"),
}


@pytest.fixture(scope="module")
def jobs(world) -> dict[str, str]:
    """A draft that is open, one that is a refusal, and one that is decided."""
    site, client = world.site, world.site.client("reader")
    reason = Reason("SLICES_TOO_THICK", "The slices are 9.0 mm apart; at most 7.0 mm.")
    whose = {"refused": "2.25.4712", "decided": "2.25.4713"}
    drafts = {
        name: replace(made(0)[1], provenance=replace(made(0)[1].provenance, study_uid=uid), prior=None)
        for name, uid in whose.items()
    }
    drafts["refused"] = replace(
        drafts["refused"], report=None, gate=Gate(False, (reason,), {}), complaints=()
    )
    added = {name: site.add(0, draft, StudyInstanceUID=whose[name]) for name, draft in drafts.items()}
    client.get(f"/drafts/{added['decided']}")
    answer = client.press(f"/drafts/{added['decided']}/decide", version=0, verb="accept", despite="yes")
    assert answer.status_code < 400
    return {"job": world.job} | added


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("what", PAGES)
def test_axe_finds_no_serious_barrier(chromium, world, jobs, what, language):
    if not AXE.exists():
        pytest.skip("axe-core is not here: `npm ci` in mla_med/review/viewer")
    page = opened(chromium, world, jobs, what, language)
    found = barriers(page)
    page.close()
    assert found == []


@pytest.mark.parametrize("what", PAGES)
def test_everything_is_reached_by_the_tab_key(chromium, world, jobs, what):
    page = opened(chromium, world, jobs, what)
    wanted = page.evaluate(TABBABLE)
    assert wanted
    page.evaluate("() => { document.activeElement.blur(); window.scrollTo(0, 0); }")
    reached = set()
    for _ in range(len(wanted) + 20):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("() => document.activeElement.dataset?.tabbed ?? null"))
    missed = [n for n in wanted if str(n) not in reached]
    words = page.evaluate(
        "ns => ns.map(n => document.querySelector(`[data-tabbed='${n}']`).outerHTML.slice(0, 90))", missed
    )
    page.close()
    assert words == []


def opened(browser, world, jobs: dict[str, str], what: str, language: str = "en"):
    """One of PAGES, with all that it can unfold."""
    name, path = PAGES[what]
    page = visit(browser, world, name=name).page
    if name and language == "zh":
        page.click("button[lang=zh]")
    elif language == "zh":
        page.set_extra_http_headers({"accept-language": "zh"})
    page.goto(path.format(**jobs))
    if what == "draft":  # the images of the others are two slices, which are no volume
        page.wait_for_selector("#viewer .v-stage[data-complete=true]")
    page.evaluate("() => document.querySelectorAll('details').forEach(one => { one.open = true; })")
    assert page.get_attribute("html", "lang") == language
    return page


def barriers(page) -> list:
    """What axe calls serious or critical, in light and in the dark, on a narrow and a wide screen; and what
    lies beyond the edge of the screen."""
    found = []
    page.evaluate(AXE.read_text("utf-8"))
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for width in (1280, 1920):
            page.set_viewport_size({"width": width, "height": 900})
            for v in page.evaluate("async () => (await axe.run()).violations"):
                if v["impact"] in ("serious", "critical"):
                    where = [n["target"] for n in v["nodes"]][:3]
                    found.append((scheme, width, v["id"], v["impact"], where))
            over = page.evaluate("() => document.documentElement.scrollWidth - innerWidth")
            if over > 0:
                found.append((scheme, width, f"{over} px too wide"))
    return found


def test_axe_finds_no_serious_barrier_on_the_page_without_a_server(chromium, world, tmp_path):
    if not AXE.exists():
        pytest.skip("axe-core is not here: `npm ci` in mla_med/review/viewer")
    from mla_med.documents.html import draft_to_html

    path = tmp_path / "draft.html"
    path.write_text(draft_to_html(drafted(world.volume, {}), world.volume), encoding="utf-8")
    page = chromium.new_page()
    page.goto(path.as_uri())
    found = barriers(page)
    page.close()
    assert found == []


def test_a_patient_is_found_from_the_worklist(chromium, world):
    made = visit(chromium, world)
    page = made.page
    name = world.site.desk.patient(world.job).name
    page.fill("#who", name.split(",")[0])
    page.keyboard.press("Enter")
    page.wait_for_selector("#looked p")
    assert name in page.inner_text(f"#who-{world.job}")
    assert "found: 1" in page.inner_text("#looked")
    page.fill("#who", "nobody of this name")
    page.keyboard.press("Enter")
    page.wait_for_selector("#rows .empty")
    assert name.split(",")[0] not in page.url
    assert not made.said
    page.close()


def test_the_number_behind_a_sentence_leads_to_its_fields(reading, world):
    page = reading.page
    number = page.get_attribute(sentence_of(page, "effusion"), "data-findings").split()[0]
    page.click(f".refs a[href='#finding-{number}'] >> nth=0")
    wait_slice(page, world.slices["pleural_effusion"])
    box = page.locator(f"#finding-{number}").bounding_box()
    assert 0 <= box["y"] < 900
    assert page.get_attribute(f"#finding-{number}", "aria-current") == "true"


def test_a_second_click_that_falls_onto_the_next_draft_decides_nothing(chromium, world):
    made = visit(chromium, world)
    page = made.page
    page.add_init_script("performance.now = () => 200")  # as soon as it is there
    page.goto(f"/drafts/{world.job}")
    page.click(".decide button.main")
    page.wait_for_timeout(500)
    assert not [url for url in made.asked if url.endswith("/decide")]
    assert world.site.store.item(world.job).state == "OPEN"
    page.close()


def test_the_worklist_is_read_by_keys_alone(chromium, world):
    made = visit(chromium, world)
    page = made.page
    page.keyboard.press("/")
    assert page.evaluate("() => document.activeElement.id") == "search"
    page.evaluate("() => document.activeElement.blur()")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    page.wait_for_url("**/drafts/*")
    page.close()


def test_from_signing_in_to_the_revision_in_the_pacs(chromium, world, running):
    """Last, as it decides the draft."""
    made = visit(chromium, world)
    page = made.page
    page.on("dialog", lambda dialog: dialog.accept())
    page.click(f"a[href*='/drafts/{world.job}']")
    page.wait_for_selector("#viewer .v-stage[data-drawn=true]")
    page.click(sentence_of(page, "mass"))
    wait_slice(page, world.slices["lung_mass"])

    row = page.locator("[data-finding=lung_mass]").first
    place = row.locator("select[name=place]")
    said = place.input_value()
    side, other = (Side.RIGHT, Side.LEFT) if said.startswith("right") else (Side.LEFT, Side.RIGHT)
    wrong = next(
        v
        for v in place.locator("option").evaluate_all("os => os.map(o => o.value)")
        if v.startswith(other.value)
    )
    place.select_option(wrong)
    page.wait_for_selector("#linter.speaks li")
    assert "SIDE" in page.get_attribute("#linter li", "data-rule")
    assert other.value in page.input_value(sentence_of(page, "mass")).lower()  # the words follow the field
    page.wait_for_selector("#viewer .v-stage[data-drawn=true]")

    page.locator("[data-finding=lung_mass] select[name=place]").first.select_option(said)
    page.wait_for_selector("#linter:not(.speaks)")
    assert side.value in page.input_value(sentence_of(page, "mass")).lower()
    effusion = page.locator("[data-finding=pleural_effusion]").first
    effusion.locator("select[name=presence]").select_option("absent")
    page.wait_for_function("() => document.querySelector('#version').value === '3'")

    page.click(".decide button.main")
    page.wait_for_url(f"{world.url}/**", wait_until="load")
    page.wait_for_function("id => !location.pathname.includes(id)", arg=world.job)
    world.deliver()
    reports = [dcmread(io.BytesIO(content)) for content in running.files()]
    study = world.site.book.study_uid(world.job)
    reports = [one for one in reports if one.Modality == "SR" and one.StudyInstanceUID == study]
    assert len(reports) == 2
    (revision,) = (one for one in reports if "PredecessorDocumentsSequence" in one)
    (first,) = (one for one in reports if one is not revision)
    named = revision.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert named.ReferencedSOPInstanceUID == first.SOPInstanceUID
    assert (revision.VerificationFlag, revision.PreliminaryFlag) == ("UNVERIFIED", "PRELIMINARY")
    assert "Doe^Jane" in [str(item.PersonName) for item in items(revision) if "PersonName" in item]
    assert "No pleural effusion." in [item.TextValue for item in items(revision) if "TextValue" in item]
    assert not made.said
    page.close()


def items(dataset: Dataset) -> Iterator[Dataset]:
    for item in dataset.get("ContentSequence", []):
        yield item
        yield from items(item)
