"""References + drafts -> scores of networks that read reports, where their weights are; a reason where not.

    python -m evaluation.judges radgraph < pairs.json

RadGraph-F1, RadBERT-CT F1, GREEN and RaTEScore run through RadEval 2 (`pip install RadEval`), each in a
process of its own: torch stays out of the suite, and what a network does cannot hurt the other scores.
Nothing is downloaded: weights have to lie in the caches that the networks look in. What is called, and where
weights are looked for, was read in the source of RadEval 2.2.1 (radeval/radeval.py, metrics/*/adapter.py,
metrics/radgraph/_vendor/core.py).
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
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
    """Repositories of the Hugging Face hub, or a folder in the user's cache after "cache:"."""
    language: str = "en"


@dataclass(frozen=True, slots=True)
class Judged:
    """What one judge said, or why it did not."""

    judge: Judge
    values: Mapping[str, float]
    """Means over the cases, and what the judge has of the corpus alone."""
    per_case: Mapping[str, tuple[float, ...]]
    skipped: str = ""
    version: str = ""


JUDGES = (
    Judge("radgraph", "RadGraph-F1", "Jain et al., NeurIPS D&B 2021", ("cache:radgraph/0.1.18/radgraph-xl",)),
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
    missing = list(_missing(judge))
    return f"its weights are not on this machine: {', '.join(missing)}" if missing else ""


def _missing(judge: Judge) -> Iterator[str]:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    hub = Path(
        os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or cache / "huggingface") / "hub"
    )
    for name in judge.weights:
        folder = cache / name.removeprefix("cache:")
        if not name.startswith("cache:"):
            yield from () if _has_weights(hub, name) else (f"{name} (in {hub})",)
        elif not (folder / "weights.th").is_file():
            yield str(folder)
        else:  # the encoder under RadGraph's own weights has a repository of its own
            encoder = _encoder(folder / "config.json")
            yield from () if not encoder or _has_weights(hub, encoder) else (f"{encoder} (in {hub})",)


def _has_weights(hub: Path, name: str) -> bool:
    snapshots = hub / f"models--{name.replace('/', '--')}" / "snapshots"
    kinds = ("*.safetensors", "*.bin", "*.pt", "*.pth")
    return any(path.exists() for kind in kinds for path in snapshots.glob(f"*/{kind}"))


def _encoder(config: Path) -> str:
    try:
        return json.loads(config.read_bytes())["model"]["embedder"]["token_embedders"]["bert"]["model_name"]
    except (OSError, ValueError, LookupError, TypeError):  # RadEval will say what is wrong with it
        return ""


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
        every = [0.0] * num
        for k, value in zip(kept, values, strict=True):
            every[k] = float(value)
        per_case[name] = tuple(every)
    means = {name: sum(values) / num for name, values in per_case.items()}
    # a score of a corpus cannot be told how an empty draft would have done
    some = "" if len(kept) == num else f" (of the {len(kept)} of {num} pairs with both texts)"
    whole = {f"{name}{some}": float(value) for name, value in answer["whole"].items()}
    return Judged(
        judge,
        {name: value for name, value in {**means, **whole}.items() if math.isfinite(value)},
        per_case,
        version=answer["version"],
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """In the judge's own process: pairs as JSON on stdin, scores as JSON on the last line of stdout."""
    from importlib.metadata import version

    radeval = importlib.import_module("radeval")
    # its copy of RadGraph imports itself by a name that only a file system without case can find
    sys.modules.setdefault("RadEval", radeval)
    (key,) = arguments if arguments is not None else sys.argv[1:]
    pairs = json.load(sys.stdin)
    texts = {"refs": pairs["references"], "hyps": pairs["drafts"]}
    evaluator = radeval.RadEval(metrics=[key], per_sample=True, show_progress=False)
    per_case = evaluator(**texts)
    whole: Mapping[str, float] = {}
    if not set(evaluator.metric_keys) <= set(
        per_case
    ):  # RadBERT-CT: F1 is of the corpus, cases have accuracy
        evaluator.per_sample = False
        whole = evaluator(**texts)
    answer = {
        "per_case": {name: [float(v) for v in values] for name, values in per_case.items()},
        "whole": {name: float(value) for name, value in whole.items()},
        "version": f"RadEval {version('RadEval')}",
    }
    print("\n" + json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
