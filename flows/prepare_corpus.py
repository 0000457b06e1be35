"""Phantoms -> cohort -> corpus, and studies with their reports -> corpus, as flows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from prefect import flow
from prefect.logging import get_run_logger

from flows import wordless


@flow(name="prepare_corpus", persist_result=False, retries=1, timeout_seconds=24 * 3600)
def prepare_corpus_flow(
    out: Path, examination: str = "chest_ct", n: int = 2000, seed: int = 1, workers: int = 2
) -> Path:
    """Makes what is missing of a cohort and of its corpus; running it again goes on where it stopped."""
    logger = get_run_logger()

    def tell(noun: str) -> Callable[[int, int], None]:
        def say(done: int, total: int) -> None:
            if done % 50 == 0 or done == total:
                logger.info("%s: %d of %d", noun, done, total)

        return say

    with wordless():
        from dapt.corpus import prepare_corpus
        from mla_med.phantom.cohort import CohortConfig, make_cohort

        config = CohortConfig(n=n, seed=seed, examination=examination, workers=workers)
        cohort = make_cohort(config, out / "cohort", tell("patients"))
        return prepare_corpus(cohort, out / "corpus", workers=workers, progress=tell("images"))


@flow(name="gather_corpus", persist_result=False, retries=1, timeout_seconds=24 * 3600)
def gather_corpus_flow(
    source: Path, kind: str, out: Path, mask: bool = True, split: str = "official", workers: int = 2
) -> None:
    """`mla-med corpus` on a schedule: what is new in the source is added, what is there is not made again.
    Prefect is told counts alone."""
    logger = get_run_logger()

    def tell(done: int, refused: int) -> None:
        if done % 100 == 0:
            logger.info("%d done, %d refused", done, refused)

    with wordless():
        from dapt.build import BuildConfig
        from dapt.corpus import gather_corpus
        from dapt.importers.kinds import KINDS

        asked = KINDS[kind].examination if kind in KINDS else ""
        config = BuildConfig(examination=asked, mask=mask, split=split, workers=workers)
        gather_corpus(source, kind, out, config, progress=tell)
