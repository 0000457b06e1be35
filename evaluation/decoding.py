"""One decoder, the same reports, every way of writing them -> tokens a second, beside HF `generate`.

    python -m evaluation.decoding [CHECKPOINT] [--exported DIR] [--n 8] [--rounds 5] [--threads 2] [--out DIR]

The reports are those of phantoms that nobody trains on. Every way writes the same texts (it is an error if
one does not), in turn in each round, so that a busy machine is busy for all; printed are medians over rounds,
the median of the ratio within a round, and its lowest and highest. `constraint` is what the state machine
takes, by what the decoder takes in the same run. `free` is `generate` without any constraint, with as many
tokens; its text is another one. `slot by slot` reads no slot before the one in front of it is known: much of
what a batch of reports gains there, side by side has gained already within one report.
"""

# B texts

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from evaluation.exported import patients_of
from evaluation.selection import processor
from evaluation.targets import Spread, Target, targets_table
from evaluation.telling import tell
from mla_med.errors import MlaMedError
from mla_med.imaging.grid import Preprocessing
from mla_med.looking import find, see
from mla_med.model.checkpoint import Checkpoint, load_checkpoint
from mla_med.model.exported import load_exported
from mla_med.model.findings import FindingOutputs
from mla_med.model.fusion import Fused
from mla_med.model.generate import LegalTokens, _choose_in_turn
from mla_med.model.mla import MLAModel
from mla_med.model.slots import SlotMachine, Slots, report_slots
from mla_med.model.step import TorchReader
from mla_med.model.writing import AHEAD, Reader, write_side_by_side
from mla_med.report.context import context_text

HF = "HF generate, constrained"
ONE, MANY = "side by side", "side by side, batch"
SLOWLY, SLOWLY_MANY = "slot by slot", "slot by slot, batch"
Texts = list[tuple[int, ...]]
Times = dict[str, list[float]]


@dataclass(frozen=True, slots=True)
class Report:
    """One patient, ready to be written."""

    fused: Fused
    found: FindingOutputs
    slots: Slots


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    tokens_per_s: float
    faster: Spread
    """Than HF generate with the same constraint."""


class Watched:
    """A reader, how often it read, and how long that took, with its beginning."""

    def __init__(self, make: Callable[[], Reader]):
        self.readings = 0
        began = time.perf_counter()
        self.reader = make()
        self.seconds = time.perf_counter() - began

    def read(self, *asked: Any) -> Any:
        began = time.perf_counter()
        answer = self.reader.read(*asked)
        self.seconds += time.perf_counter() - began
        self.readings += 1
        return answer


class Writer:
    """Ways to write the same reports."""

    def __init__(self, model: MLAModel, reports: Sequence[Report]):
        self.model = model
        self.reports = reports

    def machines(self, reports: Sequence[Report]) -> list[SlotMachine]:
        return [SlotMachine(r.slots, self.model.tokenizer, self.model.config.eos_token_id) for r in reports]

    def named(self, reports: Sequence[Report]) -> dict[str, Any]:
        return dict(zip(("memory_BSE", "memory_mask_BS"), self.memory(reports), strict=True))

    def memory(self, reports: Sequence[Report]) -> tuple[Tensor, Tensor]:
        """Of several patients, whose contexts may differ in length; and its mask."""
        each = [self.model.memory(report.fused, report.found) for report in reports]
        longest = max(memory.shape[1] for memory, _ in each)
        filled = [
            (
                torch.nn.functional.pad(memory, (0, 0, 0, longest - memory.shape[1])),
                torch.nn.functional.pad(mask, (0, longest - mask.shape[1])),
            )
            for memory, mask in each
        ]
        return torch.cat([memory for memory, _ in filled]), torch.cat([mask for _, mask in filled])

    @torch.no_grad()
    def by_generate(self, free: bool = False) -> Texts:
        texts = []
        for report in self.reports:
            (machine,) = self.machines([report])
            config = self.model.config
            length = len(machine_tokens(machine))
            rules: dict[str, Any] = {"min_new_tokens": length, "max_new_tokens": length} if free else {}
            ids = self.model.generate(
                torch.full((1, 1), config.bos_token_id),
                **self.named([report]),
                **(rules or {"max_new_tokens": machine.longest}),
                logits_processor=LogitsProcessorList([] if free else [LegalTokens([machine])]),
                do_sample=False,
                pad_token_id=config.pad_token_id,
                eos_token_id=config.eos_token_id,
            )
            texts.append(tuple(ids[0, 1:].tolist()))
        return texts

    @torch.no_grad()
    def choice_by_choice(self) -> Texts:
        return [
            _choose_in_turn(self.model, self.named([report]), self.machines([report]))[0].token_ids
            for report in self.reports
        ]

    @torch.no_grad()
    def side_by_side(self, batch: int, ahead: int = AHEAD) -> Texts:
        return self.watched(batch, ahead)[0]

    @torch.no_grad()
    def watched(self, batch: int, ahead: int = AHEAD) -> tuple[Texts, list[Watched]]:
        texts: Texts = []
        readers = []
        for begin in range(0, len(self.reports), batch):
            some = self.reports[begin : begin + batch]
            machines = self.machines(some)
            places = max(machine.longest for machine in machines)

            def make(some: Sequence[Report] = some, places: int = places) -> Reader:
                return TorchReader(self.model.decoder.lm, *self.memory(some), places)

            reader = Watched(make)
            written = write_side_by_side(reader, machines, self.model.config.bos_token_id, ahead)
            texts += [one.token_ids for one in written]
            readers.append(reader)
        return texts, readers

    def constraint(self, batch: int = 1) -> float:
        """What the machines take, by what the decoder takes in the same run."""
        began = time.perf_counter()
        _, readers = self.watched(batch)
        whole = time.perf_counter() - began
        return whole / sum(reader.seconds for reader in readers) - 1


def machine_tokens(machine: SlotMachine) -> list[int]:
    """The tokens of the first legal text."""
    return [t for trie in machine.tries for t in trie.paths[trie.first_leaf[0]].tokens] + [machine.end]


def reports_of(checkpoint: Checkpoint, n: int) -> list[Report]:
    settings = Preprocessing.from_dict(checkpoint.model.config.preprocessing)
    reports = []
    for patient in patients_of(checkpoint.scope.examination, settings, n):
        context = context_text(patient.context)
        seen = see(patient.prepared, context, checkpoint.model, checkpoint.scope.examination)
        findings = find(seen, checkpoint.model, checkpoint.calibration)
        codes = list(dict.fromkeys(finding.code for finding in findings))
        slots = report_slots(findings, None, checkpoint.scope.examination, codes)
        reports.append(Report(seen.fused, seen.outputs, slots))
    return reports


def time_ways(ways: Mapping[str, Callable[[], Texts]], rounds: int) -> tuple[Times, int]:
    """-> seconds of each way in each round, and how many tokens the reports have."""
    spent: Times = {name: [] for name in ways}
    wanted: Texts = []
    for number in range(rounds + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            texts = way()
            took = time.perf_counter() - began
            if number:  # the first warms up, and is compared
                spent[name].append(took)
            elif not wanted:
                wanted = texts
            elif texts != wanted and not name.startswith("free"):
                raise AssertionError(f"{name} writes another text")
    return spent, sum(map(len, wanted))


def run(given: argparse.Namespace) -> tuple[list[Row], list[Target], dict[str, Any]]:
    checkpoint = load_checkpoint(given.checkpoint)
    reports = reports_of(checkpoint, given.n)
    writer = Writer(checkpoint.model, reports)
    ways: dict[str, Callable[[], Texts]] = {
        HF: writer.by_generate,
        "choice by choice": writer.choice_by_choice,
        SLOWLY: lambda: writer.side_by_side(1, ahead=1),
        SLOWLY_MANY: lambda: writer.side_by_side(given.n, ahead=1),
        ONE: lambda: writer.side_by_side(1),
        MANY: lambda: writer.side_by_side(given.n),
        "free: HF generate, other text": lambda: writer.by_generate(free=True),
    }
    for backend in given.backends.split(",") if given.exported else ():
        exported = load_exported(given.exported, backend).model
        numbers = [_arrays(report) for report in reports]

        def by_graph(network: Any = exported, numbers: Any = numbers) -> Texts:
            return [network.write(fused, found, [slots])[0].token_ids for fused, found, slots in numbers]

        ways[f"{ONE}, {backend}"] = by_graph
    spent, tokens = time_ways(ways, given.rounds)
    rows = [
        Row(name, tokens / median(times), Spread.of_ratios(spent[HF], times)) for name, times in spent.items()
    ]
    overhead = Spread.of(writer.constraint() for _ in range(given.rounds))
    targets = [
        Target(f"{ONE}, by {HF}", Spread.of_ratios(spent[HF], spent[ONE]), 3.5),
        Target(f"{MANY} of {given.n}, by one at a time", Spread.of_ratios(spent[ONE], spent[MANY]), 2),
        Target(
            f"{SLOWLY_MANY} of {given.n}, by one at a time",
            Spread.of_ratios(spent[SLOWLY], spent[SLOWLY_MANY]),
            2,
        ),
        Target("what the constraint adds", overhead, 0.15, at_most=True),
    ]
    facts = {
        "name": checkpoint.name,
        "sha256": checkpoint.weights_sha256,
        "reports": len(reports),
        "tokens": tokens,
        "threads": torch.get_num_threads(),
        "processor": processor(),
        "rounds": given.rounds,
    }
    return rows, targets, facts


def _arrays(report: Report) -> tuple[Any, Any, Slots]:
    def to_arrays(noun: Any) -> Any:
        tensors = {f.name: getattr(noun, f.name) for f in fields(noun)}
        return replace(noun, **{k: v.numpy() for k, v in tensors.items() if isinstance(v, torch.Tensor)})

    return to_arrays(report.fused), to_arrays(report.found), report.slots


def to_markdown(rows: Sequence[Row], targets: Sequence[Target], facts: dict[str, Any]) -> str:
    lines = [
        f"# Writing {facts['reports']} reports of {facts['tokens']} tokens",
        "",
        f"{facts['name']} ({facts['sha256'][:12]}), {facts['threads']} thread(s) of {facts['processor']}, "
        f"{facts['rounds']} rounds; medians (lowest to highest).",
        "",
        "| way | tokens/s | times HF generate |",
        "|---|---|---|",
        *(f"| {row.name} | {row.tokens_per_s:.0f} | {row.faster.to_text()} |" for row in rows),
        "",
        *targets_table(targets),
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m evaluation.decoding", description=__doc__)
    parser.add_argument("checkpoint", type=Path, nargs="?", help="the packaged chest CT model by default")
    parser.add_argument("--exported", type=Path, help="what mla-med export wrote of it")
    parser.add_argument("--backends", default="onnx", help="onnx, openvino; with commas")
    parser.add_argument("--n", type=int, default=8, help="reports")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="for decoding.json and decoding.md")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    try:
        rows, targets, facts = run(given)
    except MlaMedError as error:
        print(f"{error.code}: {error}", file=sys.stderr)
        return 1
    values = {"facts": facts, "rows": [asdict(row) for row in rows]}
    values["targets"] = [asdict(target) | {"met": target.met} for target in targets]
    tell("decoding", to_markdown(rows, targets, facts), values, given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
