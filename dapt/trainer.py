"""The three stages of a pre-training, and what of them survives a kill.

    S1  the decoder alone, a causal LM on the corpus' report texts
    S2  the image encoder and the lesion map, on patches with small lesions
    S3  the whole model: findings with evidence from the image, and the report from both

Knows no folder of a corpus and makes no model.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from dapt.collate import collate, collate_patches, map_of, report_ids
from dapt.images import Images
from dapt.patches import PatchSampler
from dapt.schedule import check_gradient, groups_of, rate
from dapt.state import under
from dapt.train_config import TrainConfig
from mla_med.corpus import LANGUAGES, Example
from mla_med.errors import CheckpointError
from mla_med.imaging.transforms import Preprocessing
from mla_med.model.findings import map_loss
from mla_med.model.mla import MLAModel

Log = Callable[[dict[str, Any]], None]
UNSEEN_BATCHES = 32
"""Of patches, that S2 is scored on after each round."""
LEAST_CELLS = 10
"""A CPU convolves in bfloat16 what has so many cells of the finest level along each axis. Of 8, the coarsest
has two, for which the gradients of oneDNN's convolutions are not always numbers."""
HARD_PACE = 0.3
"""How fast what counts as hard follows the last round."""
MAPPED = ("hffn", "full")
"""Fusions that have a lesion map."""
IMAGE_LR = 2.0
"""Convolutions with batch statistics bear twice the learning rate of attention."""


class Trainer:
    """Holds what has to survive a kill: weights, their mean, the optimizer, where we are."""

    def __init__(self, model: MLAModel, config: TrainConfig, out: Path, log: Log, begun_with: str = ""):
        """`begun_with`: a digest of examples and first weights, with which alone a state is gone on with."""
        self.model, self.config, self.out, self.log = model.to(config.device), config, out, log
        self.begun_with = begun_with
        self.edge, self.augment = config.patch * model.config.cell, config.augment(model.config.cell)
        model.image_encoder.requires_grad_(not config.freeze_image_encoder)
        self.optimizer = torch.optim.AdamW(
            groups_of(model, "image_encoder.", IMAGE_LR, config.weight_decay), lr=config.lr
        )
        self.average = _copy(model)
        self.done: dict[str, int] = {"text_epochs": 0, "rounds": 0, "epochs": 0}
        self.hard: dict[str, float] = {}
        """Of each finding, how often unseen places with and without it were taken for each other."""
        self.images: Images | None = None
        self._resume()

    def adapt_text(self, train: tuple[Example, ...]) -> None:
        """S1: the decoder reads the corpus' reports, without images."""
        for epoch in range(self.done["text_epochs"], self.config.text_epochs):
            began, losses = time.perf_counter(), []
            self._begin(1000 + epoch)
            for batch in _shuffled(train, 16, self.config.seed, 1000 + epoch):
                ids, labels = report_ids(_reports(batch, epoch), self.model.tokenizer)
                with self._autocast():
                    loss = self.model(
                        input_ids=ids.to(self.config.device), labels=labels.to(self.config.device)
                    ).loss
                self._step(loss, self.config.lr * 0.7)
                losses.append(loss.item())
            self.done["text_epochs"] = epoch + 1
            self._finish("S1 text", epoch, began, {"perplexity": math.exp(float(np.mean(losses)))})

    def find_lesions(
        self, train: tuple[Example, ...], held_out: tuple[Example, ...], settings: Preprocessing
    ) -> None:
        """S2: small lesions in patches, many times more of them than whole images would show."""
        each = self.config.round_steps
        unseen = self._sampler(held_out, settings, evenly=True)
        for number in range(self.done["rounds"], self.config.rounds):
            began, losses = time.perf_counter(), []
            self._begin(2000 + number)
            sampler = self._sampler(train, settings)
            if sampler is None:
                return

            def read(n: int, number: int = number, sampler: PatchSampler = sampler) -> dict[str, Any]:
                rng = np.random.default_rng([self.config.seed, 2000 + number, n])
                return collate_patches(sampler, settings, self.augment, rng, self.config.round_patches)

            for n, pieces in enumerate(_ahead(read, each)):
                with self._autocast():
                    loss = self._map_patches(pieces)
                done, total = number * each + n, self.config.rounds * each
                self._step(loss, rate(done, total, self.config.round_lr, self.config.warmup))
                losses.append(loss.item())
            self.done["rounds"] = number + 1
            told = self._told_apart(unseen, settings)
            for code, share in told.items():
                before = self.hard.get(code, 1 - share)
                self.hard[code] = before + HARD_PACE * (1 - share - before)
            scores = {"patches": float(np.mean(losses))} | {f"told {code}": x for code, x in told.items()}
            if told:
                scores["told, mean"] = float(np.mean(list(told.values())))
            self._finish("S2 patches", number, began, scores)

    @torch.no_grad()
    def _told_apart(self, sampler: PatchSampler | None, settings: Preprocessing) -> dict[str, float]:
        """Of each finding, the area under the curve between unseen patches that were drawn for it with and
        without it, by the strongest cell of its map."""
        if sampler is None:
            return {}
        kept = _copy(self.model)
        self.model.load_state_dict(self.average)
        self.model.eval()
        keys = self.model.config.finding_keys
        seen: dict[str, list[tuple[float, float]]] = {}
        for n in range(UNSEEN_BATCHES):
            pieces = collate_patches(
                sampler, settings, self.augment, np.random.default_rng([n]), self.config.round_patches
            )
            strongest_BF = map_of(self.model, pieces).seen_BFN().amax(-1)
            for b, code in enumerate(pieces["codes"]):
                f = keys.index(code)
                there = float(pieces["targets"].presence_BF[b, f])
                seen.setdefault(code, []).append((there, float(strongest_BF[b, f])))
        self.model.load_state_dict(kept)
        areas = {code: _area(pairs) for code, pairs in sorted(seen.items())}
        return {code: area for code, area in areas.items() if not math.isnan(area)}

    def learn(self, train, held_out, settings: Preprocessing, validate) -> None:
        """S3: findings and report from image and context."""
        steps = math.ceil(len(train) / self.config.batch)
        for epoch in range(self.done["epochs"], self.config.epochs):
            began = time.perf_counter()
            sums: dict[str, float] = {}
            counts: dict[str, int] = {}
            self._begin(epoch)
            batches = list(_shuffled(train, self.config.batch, self.config.seed, epoch))
            sampler = self._sampler(train, settings)
            for n, inputs in enumerate(self._collated(batches, settings, epoch, sampler)):
                if torch.rand(()) >= self.config.report_share:
                    del inputs["input_ids"], inputs["labels"]
                pieces = inputs.pop("patches", None)
                with self._autocast():
                    output = self.model(**_on(inputs, self.config.device))
                    if pieces is not None:
                        # normalised as whole images are, of whose statistics patches are no sample
                        with evaluating(nn.BatchNorm3d, self.model):
                            output.losses["patches"] = self._map_patches(pieces)
                        output.loss = self.model.weighted(output.losses)
                done, total = epoch * steps + n, self.config.epochs * steps
                self._step(output.loss, rate(done, total, self.config.lr, self.config.warmup))
                for name, value in output.losses.items():
                    sums[name] = sums.get(name, 0.0) + value.item()
                    counts[name] = counts.get(name, 0) + 1
                if n % 50 == 49:
                    means = {k: round(v / counts[k], 4) for k, v in sums.items()}
                    self.log(
                        {"stage": "S3 report", "epoch": epoch + 1, "step": n + 1, "steps": steps, **means}
                    )
            self.done["epochs"] = epoch + 1
            scores = {name: value / counts[name] for name, value in sums.items()}
            self._finish("S3 report", epoch, began, scores | self._validate(held_out, validate))

    def _sampler(
        self, examples: tuple[Example, ...], settings: Preprocessing, evenly: bool = False
    ) -> PatchSampler | None:
        if not self.config.patches or self.model.config.fusion_type not in MAPPED:
            return None
        hard = None if evenly else self.hard
        keys, images = self.model.config.finding_keys, self._images(settings)
        sampler = PatchSampler(examples, settings, keys, self.edge, hard, images)
        return sampler if sampler.lesions else None

    def _images(self, settings: Preprocessing) -> Images:
        self.images = self.images or Images(settings, self.config.device)
        return self.images

    def _map_patches(self, pieces: dict[str, Any]) -> Tensor:
        return map_loss(map_of(self.model, pieces), pieces["targets"].to(self.config.device))

    def _collated(
        self, batches, settings: Preprocessing, epoch: int, sampler: PatchSampler | None
    ) -> Iterator[dict[str, Any]]:

        def read(n: int) -> dict[str, Any]:
            rng = np.random.default_rng([self.config.seed, epoch, n])
            inputs = collate(
                batches[n], self.model, settings, self.augment, rng, stored=self._images(settings)
            )
            if sampler is not None:
                inputs["patches"] = collate_patches(sampler, settings, self.augment, rng, self.config.patches)
            return inputs

        return _ahead(read, len(batches))

    def _autocast(self) -> torch.autocast:
        device = torch.device(self.config.device).type
        sizes = (*self.model.config.image_dim, self.edge)
        small = min(sizes) < LEAST_CELLS * self.model.config.cell
        halved = self.config.precision == "bf16" and not (small and device == "cpu")
        return torch.autocast(device, torch.bfloat16, enabled=halved)

    def _begin(self, epoch: int) -> None:
        """Every epoch has its own random numbers, so a resumed training draws what an unbroken one does."""
        self.model.train()
        self.model.image_encoder.train(not self.config.freeze_image_encoder)
        torch.manual_seed(hash((self.config.seed, epoch)))

    def _validate(self, held_out, validate) -> dict[str, float]:
        if validate is None:
            return {}
        kept = _copy(self.model)
        self.model.load_state_dict(self.average)
        scores = validate(self.model.eval(), held_out)
        self.model.load_state_dict(kept)
        return {f"validation {name}": value for name, value in scores.items()}

    def _step(self, loss: Tensor, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        check_gradient(norm, loss)
        self.optimizer.step()
        self._follow()

    @torch.no_grad()
    def _follow(self) -> None:
        """The running mean comes nearer to the weights."""
        weights = self.model.state_dict()
        moving = [name for name, mean in self.average.items() if mean.is_floating_point()]
        follow = get_ema_multi_avg_fn(self.config.ema)
        follow([self.average[name] for name in moving], [weights[name] for name in moving], 0)
        for name in self.average.keys() - set(moving):
            self.average[name].copy_(weights[name])

    def _finish(self, stage: str, epoch: int, began: float, scores: dict[str, float]) -> None:
        seconds = time.perf_counter() - began
        row = {"stage": stage, "epoch": epoch + 1, "seconds": round(seconds, 1)}
        row |= {name: round(value, 4) for name, value in scores.items()}
        row["device"] = self._device_name()
        self._save()
        with (self.out / "log.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        self.log(row | {"finished": True})

    def _device_name(self) -> str:
        device = torch.device(self.config.device)
        return "CPU" if device.type == "cpu" else torch.cuda.get_device_name(device)

    def _save(self) -> None:
        """Tensors as safetensors, counters as JSON: nothing here can run code when it is read."""
        tensors = {f"model/{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"average/{k}": v for k, v in self.average.items()}
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{number}/{k}": torch.as_tensor(v) for k, v in state.items()}
        tensors = {k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()}
        meta = {
            "done": json.dumps(self.done),
            "hard": json.dumps(self.hard),
            "config": json.dumps(self.config.to_dict(), sort_keys=True),
            "begun with": self.begun_with,
        }
        part = self.out / "state.safetensors.part"
        save_file(tensors, part, metadata=meta)
        part.replace(self.out / "state.safetensors")

    def _resume(self) -> None:
        path = self.out / "state.safetensors"
        if not path.is_file():
            (self.out / "log.jsonl").unlink(missing_ok=True)  # of a training whose state was deleted
            return
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            meta = file.metadata()
        # what a state is older than had the value that is the default now
        begun = TrainConfig().to_dict() | json.loads(meta["config"])
        # it may go on for longer, and on another device
        free = {"epochs": 0, "device": ""}
        same = meta.get("begun with", self.begun_with) == self.begun_with
        if begun | free != self.config.to_dict() | free or not same:
            what = "settings" if same else "patients or weights"
            raise CheckpointError(
                f"{path} was begun with other {what}. Use another folder, or delete it to start again.",
                code="TRAINING_DIFFERS",
            )
        done = json.loads(meta["done"])
        if done["epochs"] > self.config.epochs:
            raise CheckpointError(
                f"{path} has {done['epochs']} epochs behind it, not {self.config.epochs}. Ask for no fewer.",
                code="TRAINING_DIFFERS",
            )
        tensors = load_file(path)
        self.model.load_state_dict(under(tensors, "model/"))
        self.average = {k: v.to(self.config.device) for k, v in under(tensors, "average/").items()}
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in under(tensors, "optimizer/").items():
            number, name = key.split("/")
            state.setdefault(int(number), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.done |= done
        self.hard = json.loads(meta.get("hard", "{}"))
        self.log({"stage": "resumed", **self.done})


def _reports(batch: tuple[Example, ...], epoch: int) -> list[str]:
    """Every other report in the other language, and each in both after two epochs."""
    return [e.reports[LANGUAGES[(n + epoch) % len(LANGUAGES)]] for n, e in enumerate(batch)]


def _shuffled(
    examples: tuple[Example, ...], size: int, seed: int, epoch: int
) -> Iterator[tuple[Example, ...]]:
    order = np.random.default_rng([seed, epoch]).permutation(len(examples))
    for start in range(0, len(order), size):
        yield tuple(examples[i] for i in order[start : start + size])


# Small parts


@contextmanager
def evaluating(kind: type[nn.Module], model: nn.Module) -> Iterator[None]:
    """Layers of this kind as at inference, though the model learns."""
    training = [module for module in model.modules() if isinstance(module, kind) and module.training]
    for module in training:
        module.eval()
    try:
        yield
    finally:
        for module in training:
            module.train()


def _ahead(read: Callable[[int], dict[str, Any]], count: int) -> Iterator[dict[str, Any]]:
    """`read` of 0 to count - 1; the next is read while the model works on this one."""
    with ThreadPoolExecutor(1) as reader:
        following = reader.submit(read, 0)
        for n in range(count):
            inputs = following.result()
            if n + 1 < count:
                following = reader.submit(read, n + 1)
            yield inputs


def _area(pairs: list[tuple[float, float]]) -> float:
    """How often what is there (1, score) scores higher than what is not (0, score); NaN if one is missing."""
    there = np.array([score for label, score in pairs if label == 1])
    absent = np.array([score for label, score in pairs if label == 0])
    if not len(there) or not len(absent):
        return math.nan
    higher = there[:, None] - absent[None]
    return float(((higher > 0) + 0.5 * (higher == 0)).mean())


def _copy(model: MLAModel) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in model.state_dict().items()}


def _on(inputs: dict[str, Any], device: str) -> dict[str, Any]:
    return {k: v.to(device) if hasattr(v, "to") else v for k, v in inputs.items()}
