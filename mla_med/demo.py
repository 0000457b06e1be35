"""The demonstration: phantoms drafted in two languages, a real series refused, scores beside the floors;
with `train_demo`, a small model made from nothing first. Everything lands under one folder."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mla_med.model import CHECKPOINTS

DEMO_SEED = 4_000_910_006
"""Of the cohort that nobody trains on, and beyond the phantoms that are scored."""
SHOWN = (
    ("chest_ct", "en", ("lung_nodule", "pleural_effusion", "cardiomegaly")),
    ("brain_mr", "zh", ("acute_infarct", "white_matter_hyperintensity")),
)
"""Examination, language of request and report, and what is planted. An examination without a packaged model
is left out."""
TITLES = {
    "chest_ct": "A phantom: a chest CT of a person who does not exist, as DICOM",
    "brain_mr": "A phantom: a brain MR of several sequences, reported in Chinese",
}
MATRIX = 256
"""Rows and columns of the chest."""


def run_demo(to: Path, phantoms: int, workers: int, out: Console, err: Console) -> None:
    """Runs again after a kill: what was drafted stays, what was half-written was never there."""
    with err.status("starting"):
        from pydicom.data import get_testdata_file

        from evaluation.run import evaluate_reports
        from mla_med.acceptance import TEST_SEEDS, draft_phantoms
        from mla_med.dicom.study import read_studies
        from mla_med.documents.text import draft_to_text
        from mla_med.drafting import Options, draft_folder, draft_one, packaged
        from mla_med.report.style import load_style

    files: list[Path] = []
    for examination, language, codes in SHOWN:
        if not CHECKPOINTS[examination].is_dir():
            continue
        with err.status("making a phantom") as status:
            study = write_study(to / examination / "dicom", examination, language, codes)
            options = Options(style=load_style("prose", language))
            model, folder = packaged(examination), to / examination
            draft, written = draft_one(
                read_studies(study), folder, model, progress=status.update, options=options
            )
        out.rule(TITLES[examination])
        out.print(draft_to_text(draft))
        files += written

    # a real head CT from pydicom's wheel, of which slices are missing
    real = Path(str(get_testdata_file("dicomdirtests/77654033/CT2/17106"))).parent
    with err.status("reading a real series") as status:
        refusal, written = draft_folder(real, to / "real", progress=status.update)
    out.rule("A real series: head CT with a hole, packaged with pydicom")
    out.print(draft_to_text(refusal))
    files += written

    with _bar(err) as bar:
        task = bar.add_task("drafting phantoms", total=phantoms)
        made = draft_phantoms(
            TEST_SEEDS[:phantoms],
            to / "scores",
            workers=workers,
            progress=lambda done, total: bar.update(task, completed=done),
        )
    # a refused phantom has no draft, which counts against the model
    scores = evaluate_reports(made.references, made.drafts, to / "scores", allow={"empty"})
    out.rule(f"Scores on {phantoms} chest phantoms that no training saw (templated reports)")
    for name in ("BLEU-4", "F1 macro", "F1 micro", "side accuracy"):
        row = scores[name]
        floors = [s for s in row.floors.values() if s.value == s.value]  # NaN: nothing to measure
        best = max(floors, key=lambda score: score.value)
        out.print(f"{name:14} {_with_interval(row.score)}   best floor {_with_interval(best)}")
    out.print(f"signature      {scores['BLEU-4'].score.signature}")
    out.print(f"drafted {made.drafted}, refused {made.refused}")
    out.print(f"first cited slice crosses the lesion: {made.cited} of {made.citable} true positives")
    out.rule("Files")
    for path in (*files, to / "scores" / "page.html"):
        out.print(str(path))


def train_demo(to: Path, err: Console) -> None:
    """All four flows on chest phantoms: corpus, training, draft, scores. About ten minutes on two cores;
    the model it makes is too small a lesson to be of use, the walk is the point."""
    with err.status("starting Prefect"):
        from flows.draft_study import draft_study_flow
        from flows.evaluate import evaluate_flow
        from flows.prepare_corpus import prepare_corpus_flow
        from flows.pretrain import pretrain_flow

    corpus = prepare_corpus_flow(to / "corpus", "chest_ct", n=200)
    checkpoint = pretrain_flow(corpus, to / "training", to / "checkpoint", epochs=3)
    study = write_study(to / "chest_ct" / "dicom", *SHOWN[0])
    draft_study_flow(study, to / "chest_ct", checkpoint)
    evaluate_flow(to / "scores", checkpoint, count=12)
    err.print(f"Done. {to / 'scores' / 'page.html'}")


def write_study(folder: Path, examination: str, language: str, codes: tuple[str, ...]) -> Path:
    """The folder of a phantom's study, as DICOM; made unless it is there."""
    from dataclasses import replace

    from mla_med.phantom.examine import examine
    from mla_med.phantom.scanning import write_dicom
    from mla_med.phantom.sites import site_of

    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        site = replace(site_of("a"), language=language)
        write_dicom(examine(DEMO_SEED, examination, site, codes=codes), folder, matrix=MATRIX)
    return folder / "study"


def _with_interval(score) -> str:
    return f"{score.value:6.3f} (95 % CI {score.ci95[0]:.3f} to {score.ci95[1]:.3f})"


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )
