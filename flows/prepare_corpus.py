"""Phantoms -> corpus, as a flow."""

from __future__ import annotations

from pathlib import Path

from prefect import flow
from prefect.logging import get_run_logger


@flow(name="prepare_corpus", persist_result=False)
def prepare_corpus_flow(
    out: Path, train: int = 3000, validation: int = 200, test: int = 200, seed: int = 1
) -> Path:
    """Makes what is missing of a corpus; running it again goes on where it stopped."""
    from dapt.corpus import CorpusConfig, prepare_corpus

    logger = get_run_logger()

    def tell(done: int, total: int) -> None:
        if done % 50 == 0 or done == total:
            logger.info("corpus: %d of %d phantoms", done, total)

    return prepare_corpus(CorpusConfig(train, validation, test, seed), out, tell)
