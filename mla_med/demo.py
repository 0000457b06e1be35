"""The demonstration: a phantom drafted, a real series refused, scores beside the floors; with
`train_demo`, a small model made from nothing first. Everything lands under one folder."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

DEMO_SEED = 910_005
DEMO_CODES = ("lung_nodule", "pleural_effusion", "cardiomegaly")


def run_demo(to: Path, phantoms: int, workers: int, out: Console, err: Console) -> None:
    """Runs again after a kill: what was drafted stays, what was half-written was never there."""
    with err.status("starting"):
        from pydicom.data import get_testdata_file

        from evaluation.run import evaluate_reports
        from mla_med.acceptance import TEST_SEEDS, draft_phantoms
        from mla_med.documents.text import draft_to_text
        from mla_med.drafting import draft_folder
        from mla_med.phantom.plain.cohort import make_phantom, write_phantom

    with err.status("making a phantom") as status:
        series = write_phantom(make_phantom(DEMO_SEED, DEMO_CODES), to / "phantom" / "dicom")
        draft, files = draft_folder(series, to / "phantom", progress=status.update)
    out.rule("A phantom: a person who does not exist, as DICOM")
    out.print(draft_to_text(draft))

    # a real head CT from pydicom's wheel, of which slices are missing
    real = Path(str(get_testdata_file("dicomdirtests/77654033/CT2/17106"))).parent
    with err.status("reading a real series") as status:
        refusal, more = draft_folder(real, to / "real", progress=status.update)
    out.rule("A real series: head CT with a hole, packaged with pydicom")
    out.print(draft_to_text(refusal))

    with _bar(err) as bar:
        task = bar.add_task("drafting phantoms", total=phantoms)
        made = draft_phantoms(
            TEST_SEEDS[:phantoms],
            to / "scores",
            workers=workers,
            progress=lambda done, total: bar.update(task, completed=done),
        )
    scores = evaluate_reports(made.references, made.drafts, to / "scores")
    out.rule(f"Scores on {phantoms} unseen phantoms (templated reports)")
    for name in ("BLEU-4", "F1 macro", "F1 micro", "side accuracy"):
        row = scores[name]
        floors = [s for s in row.floors.values() if s.value == s.value]  # NaN: nothing to measure
        best = max(floors, key=lambda score: score.value)
        out.print(f"{name:14} {_with_interval(row.score)}   best floor {_with_interval(best)}")
    out.print(f"signature      {scores['BLEU-4'].score.signature}")
    out.print(f"drafted {made.drafted}, refused {made.refused}")
    out.print(f"first cited slice crosses the lesion: {made.cited} of {made.citable} true positives")
    out.rule("Files")
    for path in (*files, *more, to / "scores" / "page.html"):
        out.print(str(path))


def train_demo(to: Path, err: Console) -> None:
    """All four flows on phantoms: corpus, training, draft, scores. About ten minutes on two cores;
    the model it makes is too small a lesson to be of use, the walk is the point."""
    with err.status("starting Prefect"):
        from flows.draft_study import draft_study_flow
        from flows.evaluate import evaluate_flow
        from flows.prepare_corpus import prepare_corpus_flow
        from flows.pretrain import pretrain_flow
        from mla_med.acceptance import TEST_SEEDS
        from mla_med.phantom.plain.cohort import make_phantom, write_phantom

    corpus = prepare_corpus_flow(to / "corpus", train=160, validation=40, test=1)
    checkpoint = pretrain_flow(corpus, to / "training", to / "checkpoint", epochs=3)
    series = write_phantom(make_phantom(DEMO_SEED, DEMO_CODES), to / "phantom" / "dicom")
    draft_study_flow(series, to / "phantom", checkpoint)
    evaluate_flow(to / "scores", checkpoint, first=TEST_SEEDS.start, count=16)
    err.print(f"Done. {to / 'scores' / 'page.html'}")


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
