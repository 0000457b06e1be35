"""Real images and texts: captions and findings of MedPix, written for its dev pictures, beside floors.

Trained on MedPix train; of the weights along the way those are taken whose drafts score best on a tenth of
the patients of train, never on dev. Pictures are averaged to 64 x 64. Floors, every one from the texts of
train:

    constant    one text for every picture, the best that could be chosen
    random      a text, drawn
    neighbour   the text of the picture that looks most alike (its 16 x 16 thumbnail), and of the request
    whose
                words are most alike

`--data` names the folder that holds medpix_train_dev; the same row runs on any other split in its format.
"""

# N pictures

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.claims.row import Job, Measured, NotMeasured, Row, Target
from evaluation.floors import floor_texts
from evaluation.statistics import draw_resamples, estimate
from evaluation.text import text_scores
from mla_med.corpus import SPLITS, Example, read_about, read_examples
from mla_med.files import write_text

SOURCE = "medpix_train_dev"
TEXTS = ("caption", "findings")
ABOVE = {text: Target(f"BLEU-4 above the best floor, {text}", 0, "points", strictly=True) for text in TEXTS}


def measure(job: Job) -> Measured:
    corpus = small_corpus(job)
    values: dict[str, float] = {}
    arms: dict[str, dict[str, float]] = {}
    facts: dict[str, Any] = {}
    for text in TEXTS:
        known, new = (_told(read_examples(corpus, split), text) for split in ("train", "validation"))
        known, new = known[: job.sizes["learnt"]], new[: job.sizes["tested"]]
        references = [e.reports["en"] for e in new]
        drafts = {**_floors(known, new, references), "the model": written(job, corpus, text, known, new)}
        drawn = draw_resamples([e.patient for e in new], "patient")
        for name, some in drafts.items():
            score = text_scores(references, some, "coco", only=("BLEU-4",))["BLEU-4"]
            measured = estimate(score.sums.statistic, drawn)
            low, high = measured.ci95
            arms[f"{text}: {name}"] = {"BLEU-4": 100 * measured.value, "low": 100 * low, "high": 100 * high}
            facts["signature"] = score.signature
        floors = {n: a["BLEU-4"] for n, a in arms.items() if n.startswith(text) and "the model" not in n}
        best = max(floors, key=lambda name: floors[name])
        values[ABOVE[text].name] = arms[f"{text}: the model"]["BLEU-4"] - floors[best]
        facts[f"best floor, {text}"] = best
        facts[f"{text}: learnt from, tested"] = [len(known), len(new)]
        job.say(f"{text}: BLEU-4 {arms[f'{text}: the model']['BLEU-4']:.2f}, floor {floors[best]:.2f}")
    return Measured(values, arms, facts)


def small_corpus(job: Job) -> Path:
    """MedPix as a corpus with pictures of 64 x 64; made once."""
    source, out = job.data / SOURCE, job.world / "medpix"
    if not source.is_dir():
        raise NotMeasured(f"No MedPix: {SOURCE} is not there. Give the folder of data by --data.")
    if job.quick:
        out = job.world / "medpix-quick"
    if (out / "corpus.json").is_file():
        return out
    from dapt.build import BuildConfig
    from dapt.corpus import gather_corpus

    job.say("gathering MedPix")
    whole = job.world / f"{out.name}-256"
    if job.quick:
        source = _first(source, job.world / "medpix-first")
    gather_corpus(source, "medpix", whole, BuildConfig(examination="", workers=0))
    (out / "images").mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        lines = []
        for line in (whole / f"{split}.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if row["image"] is None:
                continue
            picture = np.load(whole / row["image"])
            small = picture[0].reshape(64, 4, 64, 4, -1).mean((1, 3)).round().astype(np.uint8)
            np.save(out / row["image"], small[None])
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
        write_text(out / f"{split}.jsonl", "".join(lines))
    about = read_about(whole)
    about["preprocessing"]["shape"] = [64, 64, 1]
    write_text(out / "corpus.json", json.dumps(about) + "\n")
    return out


def _first(source: Path, out: Path, pictures: int = 20) -> Path:
    """The first pictures of each part."""
    (out / "images").mkdir(parents=True, exist_ok=True)
    for path in source.glob("*.jsonl"):
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        if path.name.startswith("descriptions"):
            lines = lines[:pictures]
            for line in lines:
                for image in (source / "images").glob(f"{json.loads(line)['image']}.*"):
                    shutil.copyfile(image, out / "images" / image.name)
        write_text(out / path.name, "".join(lines))
    return out


def _told(examples: Sequence[Example], text: str) -> list[Example]:
    """With that text as the report; findings speak of a case, so one picture of each case tells them."""
    told, seen = [], set()
    for example in examples:
        words = example.texts.get(text, "")
        case = example.patient if text == "findings" else example.id
        if words and case not in seen:
            seen.add(case)
            told.append(replace(example, reports={"en": words}, contexts=example.contexts or {"en": ""}))
    return told


def _floors(
    known: Sequence[Example], new: Sequence[Example], references: Sequence[str]
) -> dict[str, list[str]]:
    source = [e.reports["en"] for e in known]
    texts = floor_texts(references, source, lambda text: (), is_train=True)
    floors = {name: texts[name] for name in ("constant", "random")}
    thumbs, new_thumbs = (_thumbnails(some) for some in (known, new))
    floors["neighbour by picture"] = [source[int(n)] for n in (new_thumbs @ thumbs.T).argmax(1)]
    words, new_words = _bags(
        [e.contexts.get("en", "") for e in known], [e.contexts.get("en", "") for e in new]
    )
    floors["neighbour by request"] = [source[int(n)] for n in (new_words @ words.T).argmax(1)]
    return floors


def _thumbnails(examples: Sequence[Example]) -> np.ndarray:
    """16 x 16, centred and of length 1."""
    rows = []
    for example in examples:
        assert example.image is not None
        picture = np.load(example.image)[0, :, :, 0].astype(float)
        thumb = picture.reshape(16, 4, 16, 4).mean((1, 3)).ravel()
        thumb -= thumb.mean()
        rows.append(thumb / (np.linalg.norm(thumb) + 1e-9))
    return np.stack(rows)


def _bags(known: Sequence[str], new: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Words by TF-IDF, of length 1."""
    words = Counter(word for text in known for word in set(text.lower().split()))
    index = {word: n for n, word in enumerate(w for w, count in words.items() if count > 1)}
    rarity = np.array([np.log(len(known) / words[word]) for word in index])

    def rows(texts: Sequence[str]) -> np.ndarray:
        bags = np.zeros((len(texts), len(index)))
        for n, text in enumerate(texts):
            for word in text.lower().split():
                if word in index:
                    bags[n, index[word]] += 1
        bags *= rarity
        return bags / (np.linalg.norm(bags, axis=1, keepdims=True) + 1e-9)

    return rows(known), rows(new)


def written(job: Job, corpus: Path, text: str, known: Sequence[Example], new: Sequence[Example]) -> list[str]:
    """Greedy drafts of a small model: s1 of the texts, then pictures and requests with them."""
    import torch

    from dapt.batches import Batches, Wanted
    from dapt.loop import Loop, LoopConfig
    from dapt.objectives.fuse import Fuse
    from dapt.objectives.text import ReportText
    from dapt.tokenizer import train_tokenizer
    from mla_med.corpus import read_settings
    from mla_med.model.config import ModalConfig
    from mla_med.model.mla import MLAModel

    sizes, settings = job.sizes, read_settings(corpus)
    texts = [t for e in known for t in (e.reports["en"], e.contexts.get("en", ""))]
    tokenizer = train_tokenizer(texts, sizes["vocabulary"])
    torch.manual_seed(job.seed)
    model = MLAModel(
        ModalConfig(
            findings=[{"key": "unused", "sides": [], "sites": [], "has_size": False}],
            fusion_type="concat",
            channels=1,
            image_dim=(64, 64, 1),
            widths=(8, 16, 32, 48),
            units=(0, 1, 1, 1),
            width=64,
            text_dim=64,
            text_positions=64,
            vocab_size=max(sizes["vocabulary"], len(tokenizer)),
            decoder={"n_layer": 2, "n_embd": 96, "n_head": 4, "n_inner": 192, "n_positions": 192},
        )
    )
    model.tokenizer = tokenizer
    held, taught = _apart(known)
    folder = job.folder / text

    def train(name: str, objective: Any, wanted: Wanted, steps: int, choose: bool) -> Any:
        config = LoopConfig(
            steps=steps,
            lr=2e-3,
            ema=0.98,
            seed=job.seed,
            save_every=max(1, steps // 4),
            validate_every=max(1, steps // 4),
            stop_on="BLEU-4" if choose else "",
            higher_is_better=True,
            device="cpu",
        )
        loop = Loop(model, objective, config, folder / name)
        batches = Batches(taught, model.config, tokenizer, settings, wanted, sizes["batch"], seed=job.seed)

        def score(model: Any) -> dict[str, float]:
            some = held[: sizes["chosen_on"]]
            drafts = _drafts(model, some, settings, sizes["tokens"])
            value = text_scores([e.reports["en"] for e in some], drafts, "coco", only=("BLEU-4",))
            return {"BLEU-4": value["BLEU-4"].value}

        return loop.run(batches, None, score if choose else None)

    train("texts", ReportText(), Wanted(images=False, findings=False), sizes["steps_texts"], False)
    train("pictures", Fuse(model.config, match=0.0), Wanted(findings=False), sizes["steps"], True)
    return _drafts(model, new, settings, sizes["tokens"])


def _apart(known: Sequence[Example]) -> tuple[list[Example], list[Example]]:
    """A tenth of the patients to choose on, and the others."""
    patients = sorted({e.patient for e in known})
    chosen = set(np.random.default_rng(0).permutation(patients)[: max(1, len(patients) // 10)].tolist())
    return [e for e in known if e.patient in chosen], [e for e in known if e.patient not in chosen]


def _drafts(model: Any, examples: Sequence[Example], settings: Any, tokens: int) -> list[str]:
    import torch

    from dapt.batches import Wanted, once

    drafts: list[str] = []
    model.eval()
    with torch.no_grad():
        for some in once(examples, model.config, model.tokenizer, settings, Wanted(findings=False), 24):
            fused = model.encode(some.image_ICIJK, list(some.contexts), some.present_IC, some.affine_I44)
            ids = model.generate(fused=fused, max_new_tokens=tokens, do_sample=False)
            drafts += model.tokenizer.batch_decode(ids, skip_special_tokens=True)
    return drafts


def _sizes(quick: bool) -> Mapping[str, Any]:
    if quick:
        return {
            **{"learnt": 16, "tested": 6, "vocabulary": 400, "batch": 4, "steps_texts": 2, "steps": 4},
            **{"tokens": 8, "chosen_on": 4},
        }
    return {
        **{"learnt": 2000, "tested": 400, "vocabulary": 2048, "batch": 16, "steps_texts": 300, "steps": 600},
        **{"tokens": 64, "chosen_on": 100},
    }


ROW = Row(
    "medpix",
    "real image and text: beats the best floor, or says that it does not",
    "captions and findings of MedPix dev written by a small model that learnt MedPix train",
    "a constant, a random, and two nearest neighbours' texts from train",
    tuple(ABOVE.values()),
    _sizes,
    measure,
)
