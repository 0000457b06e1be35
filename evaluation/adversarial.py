"""Findings that nobody chose, and decoders that want to write something else -> how often they manage to.

    python -m evaluation.adversarial --n 10000 [--decoder FOLDER]

Each draft is written from random findings by a decoder with random weights, under one of the adversaries
below, in every packaged style of every language and examination, greedy or with beams, half of them with
a prior. Then it is read back by `parse_report`, and its words are searched by a list of this file's own.
Exit code 1 if any draft says what its findings do not, lacks what they do, compares with no prior, or
does not end. Two controls show that the checks can fail: the same decoders without the constraint, and
the report of another patient, who has a prior. The seed is fixed; the seconds are those of one core.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

from evaluation.linter import SEED, random_findings
from mla_med.model.config import tiny
from mla_med.model.generate import Written, report_slots, write_texts
from mla_med.model.mla import MLAModel
from mla_med.report.interpret import rules
from mla_med.report.parse import (
    agrees,
    parse_impression,
    parse_interpretation,
    parse_report,
    parse_sentence,
)
from mla_med.report.render import body_text, render_report
from mla_med.report.schema import SCHEMAS
from mla_med.report.style import Style, load_style, packaged_languages, packaged_styles
from mla_med.types import Change, Finding, Presence

BATCH = 25
BEAMS = 4
BEAM_SHARE = 8
"""One batch in this many is written by beam search."""
PLACES = 1024
COMPARISONS = {
    "en": re.compile(
        r"\b(?:unchanged|interval|previous\w*|prior|earlier|compar\w+|stable|new|newly|increas\w+|decreas\w+|"
        r"resolved|progress\w+|regress\w+|again|persist\w+|worsen\w*|improv\w+|grown|larger|smaller|since)\b",
        re.IGNORECASE,
    ),
    "zh": re.compile(
        r"较前|前片|前次|旧片|老片|同前|新发|新增|已吸收|部分吸收|进展|好转|稳定|变化|增多|减少|既往片|对比"
    ),
}
"""Words that compare, found by hand, apart from those of the linter."""
WANTED = {
    "en": ["unchanged", "new", "increased", "no", "left", "right", "bilateral", "mass", "pneumothorax", "9"],
    "zh": ["较前", "新发", "未见", "左", "右", "双侧", "肿块", "气胸", "9"],
}
"""Words that the adversary `words` would put everywhere."""


@dataclass(frozen=True, slots=True)
class Case:
    """What one draft has to say."""

    findings: tuple[Finding, ...]
    interpretations: tuple[str, ...]
    style: Style
    examination: str
    prior: bool

    def slots(self) -> list[tuple[str, ...]]:
        codes = {finding.code for finding in self.findings}
        return report_slots(
            self.findings, self.style, self.examination, codes, self.interpretations, self.prior
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one draft."""

    sentences: int
    ungrounded: int
    """Sentences that state what is no finding, or nothing that can be read."""
    read_back: bool
    """Exactly the findings, each stated once, and exactly the interpretations."""
    comparisons: int
    """Changes and comparing words, where there is no prior."""
    ended: bool


Bend = Callable[[Tensor, Tensor], Tensor]
"""Logits (N, V), and which tokens are in any wording of any text -> what an adversary makes of them."""


def adversaries(tokenizer: PreTrainedTokenizerFast, generator: torch.Generator) -> dict[str, Bend]:
    end = tokenizer.eos_token_id
    words = [w for some in WANTED.values() for word in some for w in (word, " " + word, word.capitalize())]
    wanted = sorted({token for word in words for token in tokenizer(word)["input_ids"]})

    def noise(logits: Tensor, legal_NV: Tensor) -> Tensor:
        return 100 * torch.randn(logits.shape, generator=generator)

    def want(logits: Tensor, legal_NV: Tensor) -> Tensor:
        return logits.index_fill(-1, torch.tensor(wanted), 100.0)

    def starve(logits: Tensor, legal_NV: Tensor) -> Tensor:
        """Every token of every legal wording is impossible."""
        return logits.masked_fill(legal_NV, -torch.inf)

    def break_(logits: Tensor, legal_NV: Tensor) -> Tensor:
        bent, dice = logits.clone(), torch.rand(logits.shape, generator=generator)
        bent[dice < 0.3] = torch.nan
        bent[dice > 0.7] = torch.inf
        bent[(dice > 0.5) & (dice < 0.7)] = -torch.inf
        return bent

    return {
        "none, its own weights": lambda logits, legal_NV: logits,
        "noise": noise,
        "forbidden words": want,
        "legal words impossible": starve,
        "ends at once": lambda logits, legal_NV: logits.index_fill(-1, torch.tensor([end]), 1e4),
        "never ends": lambda logits, legal_NV: logits.index_fill(-1, torch.tensor([end]), -torch.inf),
        "not a number": break_,
    }


def make_cases(n: int, rng: random.Random) -> list[Case]:
    """As many of each style, alike ones together, so that a batch has texts of like length."""
    kinds = [
        (load_style(name, language), examination)
        for language in packaged_languages()
        for name in packaged_styles(language)
        for examination in load_style(name, language).examinations
    ]
    return [make_case(*kinds[k * len(kinds) // n], prior=k % 2 == 1, rng=rng) for k in range(n)]


def make_case(style: Style, examination: str, prior: bool, rng: random.Random) -> Case:
    findings = random_findings(examination, rng)
    if prior:
        findings = tuple(replace(f, change=_some_change(f, rng)) for f in findings)
    present = {f.code for f in findings if f.presence is Presence.PRESENT}
    said = [rule.key for rule in rules(examination) if rule.finding in present]
    return Case(findings, tuple(rng.sample(said, min(2, len(said)))), style, examination, prior)


def judge(case: Case, text: str, ended: bool = True) -> Verdict:
    report = parse_report(text, case.style, case.examination)
    stated = [parse_sentence(s.text, case.style, case.examination) for s in report.sentences]
    ungrounded = sum(finding not in case.findings for finding in stated)
    ungrounded += sum(not _is_grounded(s.text, case) for s in report.impression)
    comparisons = 0
    if not case.prior:
        comparisons = sum(finding.change is not None for finding in report.findings)
        comparisons += len(COMPARISONS[case.style.language].findall(text))
    return Verdict(
        sentences=len(report.sentences) + len(report.impression),
        ungrounded=ungrounded,
        read_back=report.findings == case.findings
        and Counter(stated) == Counter(case.findings)
        and report.interpretations == case.interpretations,
        comparisons=comparisons,
        ended=ended,
    )


def train_tokenizer(texts: Sequence[str], vocab_size: int = 3000) -> PreTrainedTokenizerFast:
    """A byte-level BPE that cuts words as GPT-2 does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def make_writer(tokenizer: PreTrainedTokenizerFast, seed: int) -> MLAModel:
    torch.manual_seed(seed)
    sizes = {"n_layer": 1, "n_embd": 32, "n_inner": 64, "n_head": 2, "n_positions": PLACES}
    model = MLAModel(tiny(vocab_size=len(tokenizer), decoder=sizes)).eval()
    model.tokenizer = tokenizer
    # random weights are near zero and write nearly evenly; these have opinions
    model.get_output_embeddings().weight.data.mul_(20)
    return model


def write_cases(model: MLAModel, cases: Sequence[Case], bend: Bend, beams: int) -> list[Written]:
    slots = [case.slots() for case in cases]
    images = torch.rand(len(cases), 3, 16, 16, 16)
    fused = model.encode(images, ["cough"] * len(cases))
    with _bent(model, bend, _legal_of(model, slots)):
        return write_texts(model, fused, model.find(fused), slots, num_beams=beams)


def _legal_of(model: MLAModel, slots: Sequence[Sequence[Sequence[str]]]) -> Tensor:
    ids = model.tokenizer([text for some in slots for texts in some for text in texts])["input_ids"]
    legal_V = torch.zeros(model.config.vocab_size, dtype=torch.bool)
    legal_V[[token for path in ids for token in path]] = True
    return legal_V


@contextmanager
def _bent(model: MLAModel, bend: Bend, legal_V: Tensor) -> Iterator[None]:
    """Whatever is asked of the decoder, one place of each text of a batch or many places of some."""

    def hook(module, args, logits: Tensor) -> Tensor:
        rows_NV = logits.flatten(0, -2)
        return bend(rows_NV, legal_V.expand_as(rows_NV)).view_as(logits)

    handle = model.get_output_embeddings().register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _some_change(finding: Finding, rng: random.Random) -> Change | None:
    if finding.presence is Presence.PRESENT:
        return rng.choice((None, Change.NEW, Change.STABLE, Change.INCREASED, Change.DECREASED))
    if finding.presence is Presence.ABSENT and rng.random() < 0.1:
        return Change.RESOLVED
    return None


def _is_grounded(sentence: str, case: Case) -> bool:
    """Whether a sentence of the impression says what the findings, or the interpretations, do."""
    rule = parse_interpretation(sentence, case.style, case.examination)
    if rule is not None:
        return rule.key in case.interpretations
    stated = parse_impression(sentence, case.style, case.examination)
    if stated:
        return all(any(agrees(said, f) for f in case.findings) for said in stated)
    nothing = all(f.presence is Presence.ABSENT for f in case.findings)
    return nothing and sentence in case.style.wording(case.examination).normal


@dataclass(slots=True)
class Tally:
    drafts: int = 0
    sentences: int = 0
    ungrounded: int = 0
    read_back: int = 0
    without_prior: int = 0
    comparisons: int = 0
    endless: int = 0
    seconds: float = 0.0
    """Of one core."""

    def add(self, case: Case, verdict: Verdict, seconds: float) -> None:
        self.drafts += 1
        self.sentences += verdict.sentences
        self.ungrounded += verdict.ungrounded
        self.read_back += verdict.read_back
        self.without_prior += not case.prior
        self.comparisons += verdict.comparisons
        self.endless += not verdict.ended
        self.seconds += seconds

    @property
    def passed(self) -> bool:
        return self.read_back == self.drafts and not (self.ungrounded or self.comparisons or self.endless)

    def row(self, name: str) -> str:
        cells = (
            name,
            f"{self.drafts:,}",
            f"{self.sentences:,}",
            self.ungrounded,
            f"{100 * self.read_back / max(1, self.drafts):.4g} %",
            f"{self.without_prior:,}",
            self.comparisons,
            self.endless,
            f"{self.seconds:.0f}",
        )
        return "| " + " | ".join(map(str, cells)) + " |"


HEADER = (
    "| drafts | sentences | no finding asserts it | read back exactly | without prior | comparing words "
    "| without end | CPU s |"
)


Writers = Callable[[int], MLAModel]
"""The number of a batch -> the model that writes it."""


def random_writers(seed: int = SEED) -> Writers:
    """A decoder of its own for each batch, all with one tokenizer."""
    tokenizer = train_tokenizer(_texts(random.Random(seed)))
    return lambda number: make_writer(tokenizer, seed + number)


def writer_of(folder: Path, seed: int = SEED) -> MLAModel:
    """A causal LM of a local folder that looks at its memory with open gates and random weights."""
    torch.manual_seed(seed)
    model = MLAModel(tiny(decoder=str(folder))).eval()
    for name, weight in model.named_parameters():
        if name.endswith(".gate"):
            weight.data.fill_(1.0)
    return model


def run(
    n: int,
    writers: Writers,
    seed: int = SEED,
    batch: int = BATCH,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Tally]:
    """Tallies by style, by adversary, by beams, and of all, under "all"."""
    cases = make_cases(n, random.Random(seed))
    bends = list(adversaries(writers(0).tokenizer, torch.Generator().manual_seed(seed)).items())
    tallies: dict[str, Tally] = {}
    for number, at in enumerate(range(0, n, batch)):
        some = cases[at : at + batch]
        name, bend = bends[number % len(bends)]
        beams = BEAMS if number % BEAM_SHARE == BEAM_SHARE - 1 else 1
        began = time.process_time()
        model = writers(number)
        written = write_cases(model, some, bend, beams)
        verdicts = [
            judge(
                case,
                model.tokenizer.decode(one.token_ids[:-1]),
                one.token_ids[-1] == model.config.eos_token_id,
            )
            for case, one in zip(some, written, strict=True)
        ]
        seconds = (time.process_time() - began) / len(some)
        for case, verdict in zip(some, verdicts, strict=True):
            style = f"{case.style.language} {case.style.name}"
            for key in (style, f"adversary: {name}", f"beams: {beams}", "all"):
                tallies.setdefault(key, Tally()).add(case, verdict, seconds)
        report(f"{at + len(some)} of {n}")
    kinds = ("adversary", "beams", "all")
    return dict(sorted(tallies.items(), key=lambda item: [item[0].startswith(kind) for kind in kinds[::-1]]))


def controls(n: int, model: MLAModel, seed: int = SEED) -> dict[str, Tally]:
    """What the same checks say where nothing is constrained, and where the report is another patient's."""
    rng = random.Random(seed)
    cases = [replace(case, prior=False) for case in make_cases(2 * n, rng)[::2]]
    start = torch.full((n, 1), model.config.bos_token_id)
    ids = model.generate(start, max_new_tokens=100, do_sample=False)
    unbound, swapped = Tally(), Tally()
    for case, row in zip(cases, ids[:, 1:].tolist(), strict=True):
        ended = model.config.eos_token_id in row
        unbound.add(case, judge(case, model.tokenizer.decode(row, skip_special_tokens=True), ended), 0.0)
        other = make_case(case.style, case.examination, True, rng)
        text = body_text(render_report(other.findings, case.style, case.examination), case.style)
        swapped.add(case, judge(case, text), 0.0)
    return {"control: no constraint": unbound, "control: the report of another patient": swapped}


def _texts(rng: random.Random) -> list[str]:
    """Reports for the tokenizer, with and without a prior."""
    cases = make_cases(40 * len(SCHEMAS) * len(packaged_languages()), rng)
    return [body_text(render_report(c.findings, c.style, c.examination), c.style) for c in cases]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m evaluation.adversarial", description=__doc__)
    parser.add_argument("--n", type=int, default=10_000, help="drafts (%(default)s)")
    parser.add_argument("--seed", type=int, default=SEED, help="of findings and decoders (%(default)s)")
    parser.add_argument("--batch", type=int, default=BATCH, help="drafts written together (%(default)s)")
    parser.add_argument("--decoder", type=Path, help="a folder with a causal LM that writes in their place")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    began = time.perf_counter()

    def show(line: str) -> None:
        print(f"\r{line}", end="", file=sys.stderr, flush=True)

    writers, name = random_writers(options.seed), "random decoders"
    if options.decoder is not None:
        model = writer_of(options.decoder, options.seed)
        writers, name = (
            lambda number: model,
            f"the {model.config.decoder.model_type} of {options.decoder.name}",
        )
    tallies = run(options.n, writers, options.seed, options.batch, show)
    tallies |= controls(min(24, options.n), writers(0), options.seed)
    print(file=sys.stderr)
    print(f"{options.n:,} drafts by {name}, seed {options.seed}, {time.perf_counter() - began:.0f} s\n")
    print("| " + HEADER + "\n| --- |" + " ---: |" * 8)
    for row, tally in tallies.items():
        print(tally.row(row))
    passed = tallies["all"].passed
    print("\nPassed." if passed else "\nFAILED: see the columns that are not 0, or not 100 %.")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
