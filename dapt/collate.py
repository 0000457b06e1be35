"""Examples, or patches of them -> the tensors that a model is taught with."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from dapt.augment import Augment, moved, noisy, varied
from dapt.images import Images
from dapt.patches import PatchSampler
from mla_med.corpus import LANGUAGES, Example
from mla_med.imaging.transforms import AIR_HU, Preprocessing, window_channels
from mla_med.model.config import SIDES, ModalConfig
from mla_med.model.findings import FindingTargets
from mla_med.model.image_encoder import Frame
from mla_med.model.lesion_map import LesionMap
from mla_med.model.mla import MLAModel
from mla_med.types import Modality


def collate(
    batch: tuple[Example, ...],
    model: MLAModel,
    settings: Preprocessing,
    augment: Augment | None = None,
    rng: np.random.Generator | None = None,
    language: str = LANGUAGES[0],
    stored: Images | None = None,
) -> dict[str, Any]:
    """The arguments of MLAModel.forward. With `rng`: augmented, and each example in one of its languages;
    without, in `language` where it has that."""
    stored = stored or Images(settings)
    images, presents, affines, contexts, reports = [], [], [], [], []
    for example in batch:
        spoken = _language_of(example, language, rng)
        contexts.append(example.contexts[spoken])
        reports.append(example.reports[spoken])
        image, affine = stored.whole(example), example.affine.copy()
        present = torch.tensor(example.present)
        if rng is not None and augment is not None:
            image, affine = moved(image, affine, augment.shift, rng, AIR_HU if settings.windows_hu else 0.0)
            if settings.modality == Modality.CT:
                image = noisy(image, augment, rng)
            else:
                image, present = varied(image, present, augment, rng)
        images.append(window_channels(image, settings.windows_hu) if settings.windows_hu else image)
        presents.append(present)
        affines.append(torch.from_numpy(affine))
    ids, labels = report_ids(reports, model.tokenizer)
    return {
        "text": contexts,
        "image_BCIJK": torch.stack(images),
        "present_BC": torch.stack(presents),
        "affine_B44": torch.stack(affines),
        "targets": targets_of(batch, model.config),
        "input_ids": ids,
        "labels": labels,
    }


def _language_of(example: Example, wanted: str, rng: np.random.Generator | None) -> str:
    known = [language for language in LANGUAGES if language in example.contexts]
    if rng is not None:
        return known[int(rng.integers(len(known)))]
    return wanted if wanted in known else known[0]


def collate_patches(
    sampler: PatchSampler,
    settings: Preprocessing,
    augment: Augment,
    rng: np.random.Generator,
    count: int,
) -> dict[str, Any]:
    """What `map_of` takes, and the targets of its map."""
    patches = [sampler.draw(rng) for _ in range(count)]
    images, presents = [], []
    for patch in patches:
        if settings.modality == Modality.CT:
            images.append(window_channels(noisy(patch.image, augment, rng), settings.windows_hu))
            presents.append(patch.present)
        else:
            image, present = varied(patch.image, patch.present, augment, rng)
            images.append(image)
            presents.append(present)
    affine_B44, whole = sampler.frames(patches)
    return {
        "image_BCIJK": torch.stack(images),
        "present_BC": torch.stack(presents),
        "affine_B44": affine_B44,
        "whole_B44": whole.affine_B44,
        "shape": whole.size,
        "targets": sampler.targets(patches),
        "codes": [patch.code for patch in patches],
    }


def map_of(model: MLAModel, pieces: dict[str, Any]) -> LesionMap:
    """Of what `collate_patches` put together."""
    image_BCIJK, present_BC, affine_B44, whole_B44 = (
        pieces[name].to(model.device) for name in ("image_BCIJK", "present_BC", "affine_B44", "whole_B44")
    )
    return model.map_parts(image_BCIJK, present_BC, affine_B44, Frame(pieces["shape"], whole_B44))


def targets_of(batch: tuple[Example, ...], config: ModalConfig) -> FindingTargets:
    """What is true of each example, as the heads are taught it: of several lesions, side, site and size of
    the largest."""
    keys, sites = config.finding_keys, config.sites
    shape = (len(batch), len(keys))
    most = max([1, *(len(boxes) for e in batch for boxes in e.parts_mm.values())])
    presence, size = torch.zeros(shape), torch.full(shape, torch.nan)
    side, site = torch.full(shape, -1), torch.full(shape, -1)
    boxes = torch.full((*shape, most, 2, 3), torch.nan)
    for b, example in enumerate(batch):
        for finding in reversed(example.findings):
            f = keys.index(finding.code)
            presence[b, f] = 1
            side[b, f] = -1 if finding.side is None else SIDES.index(finding.side)
            site[b, f] = -1 if finding.site is None else sites.index(finding.site)
            size[b, f] = torch.nan if finding.size_mm is None else finding.size_mm
        for code, lesions in example.parts_mm.items():
            boxes[b, keys.index(code), : len(lesions)] = torch.tensor(lesions)
    return FindingTargets(presence, side, site, size, boxes)


def report_ids(texts: list[str], tokenizer: PreTrainedTokenizerFast) -> tuple[Tensor, Tensor]:
    """-> ids with start and end, and labels with the padding ignored."""
    rows = [[tokenizer.bos_token_id, *ids, tokenizer.eos_token_id] for ids in tokenizer(texts)["input_ids"]]
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), tokenizer.pad_token_id)
    labels = torch.full((len(rows), longest), -100)
    for n, row in enumerate(rows):
        ids[n, : len(row)] = labels[n, : len(row)] = torch.tensor(row)
    return ids, labels
