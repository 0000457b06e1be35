"""Checkpoint -> scores on chest phantoms it never saw, as a flow."""

from __future__ import annotations

from pathlib import Path

from prefect import flow
from prefect.logging import get_run_logger

from flows import wordless


@flow(name="evaluate", persist_result=False, retries=1, timeout_seconds=6 * 3600)
def evaluate_flow(out: Path, checkpoint: Path | None = None, count: int = 200, workers: int = 1) -> Path:
    """Drafts `count` phantoms through DICOM and scores them beside the floors."""
    logger = get_run_logger()

    def tell(done: int, total: int) -> None:
        if done % 20 == 0 or done == total:
            logger.info("drafted %d of %d phantoms", done, total)

    with wordless():
        from evaluation.run import evaluate_reports
        from mla_med.acceptance import TEST_SEEDS, draft_phantoms

        made = draft_phantoms(TEST_SEEDS[:count], out, checkpoint, workers, tell)
        # a refused phantom has no draft, which counts against the model
        scores = evaluate_reports(made.references, made.drafts, out, allow={"empty"})
    for name in ("BLEU-4", "F1 macro", "side accuracy"):
        logger.info("%s", scores[name].score)
    return out / "page.html"
