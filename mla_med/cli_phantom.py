"""`mla-med phantom`: people who do not exist, as studies, cohorts and pictures."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from mla_med.console import Out, err, out, print_files, progress_bar

phantoms = typer.Typer(
    help="People who do not exist: a study as a scanner sends it, a cohort, or a picture of some of them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
Examination = Annotated[str, typer.Option(help="chest_ct or brain_mr.")]
SiteKey = Annotated[str, typer.Option(help="a or b: scanner, dose, prevalence, style and language.")]


@phantoms.command()
def study(
    seed: Annotated[int, typer.Argument(min=0, help="Which patient; the same seed gives the same bytes.")],
    to: Out,
    examination: Examination = "chest_ct",
    site: SiteKey = "a",
    finding: Annotated[
        list[str] | None,
        typer.Option(help="A finding to plant, again for each; otherwise the history chooses."),
    ] = None,
    prior: Annotated[
        bool, typer.Option("--prior", help="With an earlier study of the same patient, and its report.")
    ] = False,
    maker: Annotated[str | None, typer.Option(help="Whose scanner, instead of the site's.")] = None,
    matrix: Annotated[int, typer.Option(min=64, max=512, help="Rows and columns of a CT.")] = 512,
) -> None:
    """Make one study as the scanner of a site sends it: every series, request, report and truth."""
    _use_one_thread()
    from mla_med.files import write_text
    from mla_med.phantom.cohort import record_of, report_of
    from mla_med.phantom.examine import check_codes, examine
    from mla_med.phantom.scanning import write_dicom
    from mla_med.phantom.sites import site_of
    from mla_med.report.render import report_text
    from mla_med.report.style import load_style

    chosen = site_of(site)
    codes = check_codes(finding, examination)
    with err.status("making the patient") as status:
        examined = examine(seed, examination, chosen, prior_share=float(prior), codes=codes)
        status.update("scanning")
        images = write_dicom(examined, to / examined.id, maker, matrix)
    text = report_text(report_of(examined), load_style(chosen.style, chosen.language))
    write_text(to / f"{examined.id}.txt", text + "\n")
    record = record_of(examined, {"dicom": examined.id} | images)
    write_text(to / f"{examined.id}.json", json.dumps(record, ensure_ascii=False, indent=1) + "\n")
    out.print(text)
    print_files(to / f"{examined.id}{ending}" for ending in ("", ".txt", ".json"))


@phantoms.command()
def cohort(
    to: Out,
    n: Annotated[int, typer.Option("--n", min=1, help="Patients.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Cohorts of two seeds share no patient.")] = 7,
    examination: Examination = "chest_ct",
    site: SiteKey = "a",
    form: Annotated[
        str, typer.Option(help="arrays (on the training grid), dicom (full series) or truth (no images).")
    ] = "arrays",
    prior_share: Annotated[
        float, typer.Option(min=0, max=1, help="Of how many patients there is an earlier study.")
    ] = 0.25,
    style: Annotated[str, typer.Option(help="Of the reports, instead of the site's.")] = "",
    language: Annotated[str, typer.Option(help="Of the reports, instead of the site's.")] = "",
    matrix: Annotated[int, typer.Option(min=64, max=512, help="Rows and columns of a CT in DICOM.")] = 512,
    spacing: Annotated[float, typer.Option(help="mm of the voxels of arrays; 0: the usual ones.")] = 0.0,
    odds: Annotated[
        float, typer.Option(help="Of every finding, times the usual ones: patients to learn from.")
    ] = 1.0,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
) -> None:
    """Make many patients with images, truth and report: the same bytes from the same seed. Stopped, it goes
    on where it was."""
    from mla_med.phantom.cohort import CohortConfig, make_cohort

    config = CohortConfig(
        n=n,
        seed=seed,
        examination=examination,
        site=site,
        form=form,
        prior_share=prior_share,
        style=style,
        language=language,
        matrix=matrix,
        spacing_mm=spacing,
        odds=odds,
        workers=workers,
    )
    with progress_bar() as bar:
        task = bar.add_task("patients", total=n)
        made = make_cohort(config, to, lambda done, total: bar.update(task, completed=done))
    print_files([made / "cohort.json", made / "manifest.jsonl"])


@phantoms.command()
def sheet(
    to: Annotated[Path, typer.Option("--out", help="A PNG file.")],
    n: Annotated[int, typer.Option("--n", min=1, max=60, help="Patients.")] = 12,
    seed: Annotated[int, typer.Option(min=0, help="Of the first patient.")] = 7_000_000,
    examination: Examination = "chest_ct",
    site: SiteKey = "a",
) -> None:
    """Draw patients in three planes, with their findings, into one picture."""
    _use_one_thread()
    from mla_med.phantom.sheet import draw_sheet
    from mla_med.phantom.sites import site_of

    with progress_bar() as bar:
        task = bar.add_task("patients", total=n)
        draw_sheet(range(seed, seed + n), examination, site_of(site), to, lambda: bar.advance(task))
    print_files([to])


def _use_one_thread() -> None:
    """Before numpy is imported: with more, the last bit of a sum differs, and so do a phantom's bytes."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
