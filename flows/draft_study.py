"""A study on disk -> its draft, as a flow: of a folder, or of a READY job of the ledger."""

from __future__ import annotations

from pathlib import Path

from prefect import flow
from prefect.logging import get_run_logger

from flows import wordless


@flow(name="draft_study", persist_result=False, timeout_seconds=1800)
def draft_study_flow(folder: Path, out: Path, checkpoint: Path | None = None) -> bool:
    """True if a draft was written, False if a refusal was. Prefect keeps the paths: give
    folders that name no patient."""
    logger = get_run_logger()
    with wordless():
        from mla_med.drafting import draft_folder

        draft, files = draft_folder(folder, out, checkpoint)
    codes = ", ".join(reason.code for reason in draft.gate.reasons)
    logger.info("%s: %d files", f"refused: {codes}" if codes else "drafted", len(files))
    return draft.gate.accepted


@flow(name="draft_job", persist_result=False, timeout_seconds=1800)
def draft_job_flow(settings_file: Path, job: str, hold: bool = False) -> str:
    """-> drafted, refused, held, failed, or passed where another worker has it or it is done."""
    logger = get_run_logger()
    with wordless():
        from mla_med.night.work import draft_job

        drafted = draft_job(settings_file, job, hold)
    logger.info("%s %s %s", drafted.job_id, drafted.state, " ".join(drafted.codes))
    return drafted.state
