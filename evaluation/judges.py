"""References + drafts -> scores of networks that read reports, where their weights are; a reason where not.

    python -m evaluation.judges radgraph < pairs.json

RadGraph-F1, RadBERT-CT F1, GREEN and RaTEScore run through RadEval 2 (`pip install RadEval`), each in a
process of its own: torch stays out of the suite, and what a network does cannot hurt the other scores.
Nothing is downloaded: weights have to lie in the caches that the networks look in.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mla_med.errors import ConfigError

TIMEOUT_S = 3600


@dataclass(frozen=True, slots=True)
class Judge:
    """A metric of RadEval, and what it needs."""

    key: str
    """In RadEval's registry."""
    name: str
    source: str
    weights: tuple[str, ...]
    """Repositories of the Hugging Face hub, or a folder (a pattern) in the user's cache after "cache:"."""
    language: str = "en"


@dataclass(frozen=True, slots=True)
class Judged:
    """What one judge said, or why it did not."""

    judge: Judge
    values: Mapping[str, float]
    per_case: Mapping[str, tuple[float, ...]]
    skipped: str = ""
    version: str = ""


JUDGES = (
    Judge("radgraph", "RadGraph-F1", "Jain et al., NeurIPS D&B 2021", ("cache:radgraph/*/radgraph-xl",)),
    Judge("f1radbert_ct", "RadBERT-CT F1", "Hamamci et al., 2024", ("IAMJB/RadBERT-CT",)),
    Judge("green", "GREEN", "Ostmeier et al., EMNLP Findings 2024", ("StanfordAIMI/GREEN-radllama2-7b",)),
    Judge(
        "ratescore",
        "RaTEScore",
        "Zhao et al., EMNLP 2024",
        ("Angelakeke/RaTE-NER-Deberta", "FremyCompany/BioLORD-2023-C"),
    ),
)


def judge_reports(
    references: Sequence[str],
    drafts: Sequence[str],
    names: Sequence[str] | None = None,
    language: str = "en",
) -> tuple[Judged, ...]:
    """`names`: keys of JUDGES; None is all of them."""
    known = {judge.key: judge for judge in JUDGES}
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise ConfigError(f"No judge '{unknown[0]}'; there are: {', '.join(known)}.", code="JUDGE_UNKNOWN")
    chosen = [known[name] for name in names] if names is not None else list(JUDGES)
    return tuple(_judge(judge, references, drafts, language) for judge in chosen)


def why_not(judge: Judge, language: str = "en") -> str:
    """In words; empty where it can run."""
    if language != judge.language:
        return f"it reads {judge.language} only"
    if importlib.util.find_spec("radeval") is None:
        return "RadEval is not installed: pip install RadEval"
    missing = [name.removeprefix("cache:") for name in judge.weights if not _has_weights(name)]
    return f"its weights are not on this machine: {', '.join(missing)}" if missing else ""


def _has_weights(name: str) -> bool:
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    if name.startswith("cache:"):
        return any(cache.glob(name.removeprefix("cache:")))
    home = Path(os.environ.get("HF_HOME", cache / "huggingface"))
    hub = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    return (hub / f"models--{name.replace('/', '--')}" / "snapshots").is_dir()


def _judge(judge: Judge, references: Sequence[str], drafts: Sequence[str], language: str) -> Judged:
    if reason := why_not(judge, language):
        return Judged(judge, {}, {}, skipped=reason)
    # an empty text makes some of them drop the pair and shift those behind it
    kept = [k for k in range(len(references)) if references[k].strip() and drafts[k].strip()]
    if not kept:
        return Judged(judge, {}, {}, skipped="no pair has both texts")
    pairs = {"references": [references[k] for k in kept], "drafts": [drafts[k] for k in kept]}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "evaluation.judges", judge.key],
            input=json.dumps(pairs),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"},
        )
    except subprocess.TimeoutExpired:
        return Judged(judge, {}, {}, skipped=f"it took more than {TIMEOUT_S} s")
    if done.returncode:
        last = (done.stderr.strip() or "it ended without a word").splitlines()[-1]
        return Judged(judge, {}, {}, skipped=f"it failed: {last[:200]}")
    return _to_judged(judge, json.loads(done.stdout.splitlines()[-1]), kept, len(references))


def _to_judged(judge: Judge, answer: Mapping, kept: Sequence[int], num: int) -> Judged:
    """A pair with an empty text scores 0."""
    per_case: dict[str, tuple[float, ...]] = {}
    for name, values in answer["per_case"].items():
        if len(values) != len(kept):
            reason = f"{len(kept)} pairs went in and {len(values)} scores came out"
            return Judged(judge, {}, {}, skipped=reason)
        whole = [0.0] * num
        for k, value in zip(kept, values, strict=True):
            whole[k] = float(value)
        per_case[name] = tuple(whole)
    means = {name: sum(values) / num for name, values in per_case.items()}
    return Judged(
        judge,
        {name: value for name, value in means.items() if math.isfinite(value)},
        per_case,
        version=answer["version"],
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """In the judge's own process: pairs as JSON on stdin, scores as JSON on the last line of stdout."""
    from importlib.metadata import version

    radeval = importlib.import_module("radeval")
    (key,) = arguments if arguments is not None else sys.argv[1:]
    pairs = json.load(sys.stdin)
    evaluator = radeval.RadEval(metrics=[key], per_sample=True, show_progress=False)
    per_case = evaluator(refs=pairs["references"], hyps=pairs["drafts"])
    answer = {name: [float(v) for v in values] for name, values in per_case.items()}
    print("\n" + json.dumps({"per_case": answer, "version": f"RadEval {version('RadEval')}"}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
