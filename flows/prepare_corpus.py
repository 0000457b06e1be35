"""Phantoms -> cohort -> corpus, as a flow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from prefect import flow
from prefect.logging import get_run_logger


@flow(name="prepare_corpus", persist_result=False, retries=1, timeout_seconds=24 * 3600)
def prepare_corpus_flow(
    out: Path, examination: str = "chest_ct", n: int = 2000, seed: int = 1, workers: int = 2
) -> Path:
    """Makes what is missing of a cohort and of its corpus; running it again goes on where it stopped."""
    from dapt.corpus import prepare_corpus
    from mla_med.phantom.cohort import CohortConfig, make_cohort

    logger = get_run_logger()

    def tell(noun: str) -> Callable[[int, int], None]:
        def say(done: int, total: int) -> None:
            if done % 50 == 0 or done == total:
                logger.info("%s: %d of %d", noun, done, total)

        return say

    config = CohortConfig(n=n, seed=seed, examination=examination, workers=workers)
    cohort = make_cohort(config, out / "cohort", tell("patients"))
    return prepare_corpus(cohort, out / "corpus", workers=workers, progress=tell("images"))
