"""Examples -> the batch of any step, the same whatever was made before it.

The order of the examples, what is moved, noised or hidden in an image and the language of a report follow
from the seed and the place in the stream alone. So a training that was killed goes on with the batches it
would have had, and two processes together see what one with the double batch sees.

An example may have an image, a text, or both. Knows files and tensors. Knows no network and no loss.
"""

# B examples of a batch, of which I have an image and T a report; C channels, I J K voxel axes, L tokens

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dapt.augment import Augment, moved, noisy, varied
from dapt.collate import report_ids, targets_of
from mla_med.corpus import LANGUAGES, Example, load_image
from mla_med.errors import ConfigError
from mla_med.imaging.transforms import AIR_HU, Preprocessing, inside_body, window_channels
from mla_med.model.config import ModalConfig
from mla_med.model.findings import FindingTargets
from mla_med.types import Modality

AHEAD = 2
"""So many batches are read while the model works."""
HIDDEN_CELLS = 2
"""Edge of what is hidden at a time, in cells of the finest level: a token of the middle one."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What was drawn for one micro-step of one process."""

    step: int
    size: int
    """Examples, with an image or without."""
    patient_B: Tensor
    """A number that says who it is."""
    image_rows_I: Tensor
    """Which of the examples have an image; the next fields speak of these."""
    image_ICIJK: Tensor | None
    present_IC: Tensor | None
    affine_I44: Tensor | None
    contexts: tuple[str, ...]
    targets: FindingTargets | None
    """None: nothing is known of any of them, or nothing shall be."""
    inside_IIJK: Tensor | None
    """Voxels of the body and what it encloses."""
    hidden_IIJK: Tensor | None
    text_rows_T: Tensor
    """Which of the examples have a report; the next fields speak of these."""
    reports: tuple[str, ...]
    text_T: Tensor
    """A number for each text: equal texts have equal ones."""
    ids_TL: Tensor | None
    labels_TL: Tensor | None

    def to(self, device: torch.device | str) -> Batch:
        here = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {k: v.to(device) if hasattr(v, "to") else v for k, v in here.items()}
        return Batch(**moved)

    @property
    def pairs(self) -> tuple[Tensor, Tensor]:
        """Of the examples with both, the place among the images and that among the reports (P,), (P,)."""
        same_IT = self.image_rows_I[:, None] == self.text_rows_T[None]
        in_images, in_reports = same_IT.nonzero(as_tuple=True)
        return in_images, in_reports

    @property
    def tokens(self) -> int:
        """That a language model is taught: each but the first of a report."""
        return 0 if self.labels_TL is None else int((self.labels_TL[:, 1:] != -100).sum())


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a batch is asked for; what is not wanted is not read."""

    images: bool = True
    texts: bool = True
    findings: bool = True
    """Whether anything may be known of the images."""
    hidden: float = 0.0
    """Share of the cells with body in them that are hidden (SimMIM: 0.6, Xie et al., CVPR 2022)."""
    augment: Augment | None = None
    """By how much images are changed; None: not at all, and always the first language."""


class Batches:
    """(step, micro-step) -> Batch. `size` is that of a micro-step of one process."""

    def __init__(
        self,
        examples: Sequence[Example],
        config: ModalConfig,
        tokenizer: Any,
        settings: Preprocessing | None,
        wanted: Wanted,
        size: int,
        accumulate: int = 1,
        seed: int = 0,
    ):
        self.examples = tuple(e for e in examples if _is_any(e, wanted))
        if not self.examples:
            raise ConfigError(
                "None of the examples has what this stage learns from. Does the corpus hold "
                f"{' or '.join(n for n in ('images', 'texts') if getattr(wanted, n))}?",
                code="NOTHING_TO_LEARN",
            )
        self.config, self.tokenizer, self.settings, self.wanted = config, tokenizer, settings, wanted
        self.size, self.accumulate, self.seed = size, accumulate, seed

    def __call__(self, step: int, micro: int = 0, rank: int = 0, world: int = 1) -> Batch:
        first = ((step * self.accumulate + micro) * world + rank) * self.size
        slots = range(first, first + self.size)
        rngs = [np.random.default_rng([self.seed, slot]) for slot in slots]
        return make_batch(
            [self.examples[self._place(slot)] for slot in slots],
            self.config,
            self.tokenizer,
            self.settings,
            self.wanted,
            rngs,
            step,
        )

    def _place(self, slot: int) -> int:
        """Every example once before any comes again, in an order of its own each time."""
        turn, place = divmod(slot, len(self.examples))
        return int(_order(self.seed, turn, len(self.examples))[place])

    def stream(
        self, first: int, last: int, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[int, list[Batch]]]:
        """(step, its micro-batches) of the steps from `first` up to `last`; the next are read meanwhile."""

        def read(step: int) -> list[Batch]:
            return [self(step, micro, rank, world) for micro in range(self.accumulate)]

        with ThreadPoolExecutor(1) as reader:
            ahead = [reader.submit(read, step) for step in range(first, min(first + AHEAD, last))]
            for step in range(first, last):
                if step + AHEAD < last:
                    ahead.append(reader.submit(read, step + AHEAD))
                yield step, ahead.pop(0).result()


def once(
    examples: Sequence[Example],
    config: ModalConfig,
    tokenizer: Any,
    settings: Preprocessing | None,
    wanted: Wanted,
    size: int,
) -> Iterator[Batch]:
    """Every example once, in order and unchanged: what is measured, not learnt from."""
    wanted = replace(wanted, augment=None)
    examples = [e for e in examples if _is_any(e, wanted)]
    for first in range(0, len(examples), size):
        part = examples[first : first + size]
        rngs = [np.random.default_rng([0, first + n]) for n in range(len(part))]
        yield make_batch(part, config, tokenizer, settings, wanted, rngs, first // size)


def make_batch(
    examples: Sequence[Example],
    config: ModalConfig,
    tokenizer: Any,
    settings: Preprocessing | None,
    wanted: Wanted,
    rngs: Sequence[np.random.Generator],
    step: int = 0,
) -> Batch:
    spoken = [_language(e, rng if wanted.augment else None) for e, rng in zip(examples, rngs, strict=True)]
    with_image = [n for n, e in enumerate(examples) if wanted.images and e.image is not None]
    with_text = [n for n, e in enumerate(examples) if wanted.texts and e.reports.get(spoken[n])]
    images, presents, affines, inside, hidden = [], [], [], [], []
    for n in with_image:
        assert settings is not None
        image, present, affine, body = _read(examples[n], settings, wanted, rngs[n])
        images.append(image)
        presents.append(present)
        affines.append(affine)
        if wanted.hidden:
            inside.append(torch.from_numpy(body))
            hidden.append(torch.from_numpy(hide(body, wanted.hidden, rngs[n], HIDDEN_CELLS * config.cell)))
    reports = tuple(examples[n].reports[spoken[n]] for n in with_text)
    ids, labels = report_ids(list(reports), tokenizer) if reports else (None, None)
    longest = config.decoder.max_position_embeddings  # type: ignore[union-attr]
    return Batch(
        step=step,
        size=len(examples),
        patient_B=torch.tensor([number_of(e.patient or e.id) for e in examples]),
        image_rows_I=torch.tensor(with_image, dtype=torch.long),
        image_ICIJK=torch.stack(images) if images else None,
        present_IC=torch.stack(presents) if images else None,
        affine_I44=torch.stack(affines) if images else None,
        contexts=tuple(examples[n].contexts.get(spoken[n], "") for n in with_image),
        targets=known_targets([examples[n] for n in with_image], config) if wanted.findings else None,
        inside_IIJK=torch.stack(inside) if inside else None,
        hidden_IIJK=torch.stack(hidden) if hidden else None,
        text_rows_T=torch.tensor(with_text, dtype=torch.long),
        reports=reports,
        text_T=torch.tensor([number_of(text) for text in reports], dtype=torch.long),
        ids_TL=None if ids is None else ids[:, :longest],
        labels_TL=None if labels is None else labels[:, :longest],
    )


def known_targets(examples: Sequence[Example], config: ModalConfig) -> FindingTargets | None:
    """As `targets_of`, and NaN where nobody can say; None where nothing is known of any example."""
    keys = config.finding_keys
    if all(e.labels == "none" for e in examples):
        return None
    mine = [_only(e, set(keys)) for e in examples]
    targets = targets_of(tuple(mine), config)
    for n, example in enumerate(examples):
        known = () if example.labels == "none" else keys if example.known is None else example.known
        for f, key in enumerate(keys):
            if key not in known:
                targets.presence_BF[n, f] = torch.nan
    return targets


def _only(example: Example, keys: set[str]) -> Example:
    """Without findings that the model does not look for, and sites that it cannot name."""
    return replace(
        example,
        findings=tuple(f for f in example.findings if f.code in keys),
        boxes_mm={code: boxes for code, boxes in example.boxes_mm.items() if code in keys},
        parts_mm={code: parts for code, parts in example.parts_mm.items() if code in keys},
    )


def hide(inside_IJK: np.ndarray, share: float, rng: np.random.Generator, edge: int) -> np.ndarray:
    """Which voxels are hidden: whole cubes, drawn among those that hold any of the body."""
    grid = [-(-size // edge) for size in inside_IJK.shape]
    padded = np.zeros([cells * edge for cells in grid], bool)
    padded[tuple(slice(size) for size in inside_IJK.shape)] = inside_IJK
    i, j, k = grid
    cells = padded.reshape(i, edge, j, edge, k, edge).any((1, 3, 5))
    filled = np.flatnonzero(cells)
    drawn = np.zeros(cells.size, bool)
    drawn[rng.permutation(filled)[: round(share * len(filled))]] = True
    drawn = drawn.reshape(grid)
    for axis in range(3):
        drawn = drawn.repeat(edge, axis)
    return drawn[tuple(slice(size) for size in inside_IJK.shape)]


def number_of(words: str) -> int:
    return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8).digest(), signed=True)


def _read(
    example: Example, settings: Preprocessing, wanted: Wanted, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor, np.ndarray]:
    """-> channels (C, I, J, K), which of them were taken, affine, and the body where it is wanted."""
    image, affine = torch.from_numpy(load_image(example, settings)), example.affine.copy()
    present = torch.tensor(example.present)
    is_hu = bool(settings.windows_hu)
    if wanted.augment is not None:
        image, affine = moved(image, affine, wanted.augment.shift, rng, AIR_HU if is_hu else 0.0)
        if settings.modality == Modality.CT:
            image = noisy(image, wanted.augment, rng)
        else:
            image, present = varied(image, present, wanted.augment, rng)
    body = np.zeros(0, bool)
    if wanted.hidden:
        body = inside_body(image.numpy()) if is_hu else (image != 0).any(0).numpy()
    channels = window_channels(image, settings.windows_hu) if is_hu else image
    return channels, present, torch.from_numpy(affine), body


def _language(example: Example, rng: np.random.Generator | None) -> str:
    """Of its report, or of its request where there is none."""
    there = sorted(example.reports or example.contexts or {LANGUAGES[0]: ""}, key=_rank)
    return there[0] if rng is None or len(there) == 1 else there[int(rng.integers(len(there)))]


def _rank(language: str) -> tuple[int, str]:
    return (LANGUAGES.index(language) if language in LANGUAGES else len(LANGUAGES), language)


def _is_any(example: Example, wanted: Wanted) -> bool:
    return (wanted.images and example.image is not None) or (wanted.texts and any(example.reports.values()))


_ORDERS: dict[tuple[int, int, int], np.ndarray] = {}


def _order(seed: int, turn: int, n: int) -> np.ndarray:
    if (seed, turn, n) not in _ORDERS:
        if len(_ORDERS) > 16:
            _ORDERS.clear()
        _ORDERS[seed, turn, n] = np.random.default_rng([seed, turn, n, 1]).permutation(n)
    return _ORDERS[seed, turn, n]


def make_bench_batch(
    config: ModalConfig, step: int, size: int = 2, edge: int = 48, tokens: int = 200
) -> Batch:
    """Noise of the shape of a batch, for timing."""
    rng = torch.Generator().manual_seed(step)
    tokens = min(tokens, config.decoder.max_position_embeddings)  # type: ignore[union-attr]
    ids = torch.randint(3, config.vocab_size, (size, tokens), generator=rng)
    there = (torch.rand(size, len(config.finding_keys), generator=rng) < 0.2).float()
    return Batch(
        step=step,
        size=size,
        patient_B=torch.arange(size),
        image_rows_I=torch.arange(size),
        image_ICIJK=torch.rand(size, config.channels, edge, edge, edge, generator=rng),
        present_IC=torch.ones(size, config.channels, dtype=torch.bool),
        affine_I44=torch.eye(4).expand(size, 4, 4),
        contexts=("cough",) * size,
        targets=FindingTargets(there),
        inside_IIJK=None,
        hidden_IIJK=None,
        text_rows_T=torch.arange(size),
        reports=("",) * size,
        text_T=torch.arange(size),
        ids_TL=ids,
        labels_TL=ids,
    )
