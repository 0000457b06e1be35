"""A causal LM + texts -> the same LM, adapted to them; and how well it predicts a text.

With adapters of low rank (LoRA: Hu et al., ICLR 2022) what the LM had is frozen. So that it does not forget,
some of the sequences are its own: drawn from the LM before anything was learnt, they stand for all it knew,
and no other text is needed (Huang et al., Self-Synthesized Rehearsal, ACL 2024). Killed, it goes on from the
last state to the same weights. Knows no image, and not what a text is about.
"""

# B batch, L tokens

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dapt.schedule import check_gradient, rate
from dapt.state import digest_of
from mla_med.errors import CheckpointError, ConfigError
from mla_med.model.decoder import add_lora

STATE, REPLAY = "language.safetensors", "replay.safetensors"
LOWEST = 0.05
"""Share of the peak that is left of the learning rate at the end: so short a training ends less slowly."""
Tell = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class LanguageConfig:
    steps: int = 64
    batch: int = 2
    """Sequences of a step."""
    block: int = 256
    """Tokens of a sequence: texts one after the other, with the end between."""
    lr: float = 5e-4
    """Peak of AdamW."""
    rank: int = 8
    """Of the adapters; 0: every weight is taught."""
    upper: float = 1.0
    """Share of the blocks, the last ones, that get adapters: those below them need no gradient, which is half
    of the time of a step."""
    replay: float = 0.25
    """Share of the loss on what the LM itself wrote before it was adapted."""
    replayed: int = 16
    """So many such sequences."""
    warmup: float = 0.1
    clip: float = 1.0
    bf16: bool = True
    """Of matrix products; weights are float32."""
    save_every: int = 8
    seed: int = 0

    def __post_init__(self):
        if min(self.steps, self.batch, self.save_every) < 1 or self.block < 8 or not 0 <= self.replay < 1:
            raise ConfigError(
                "steps, batch and save_every are 1 or more, block 8 or more, replay from 0 to below 1."
            )


def adapt_lm(
    lm: Any, tokenizer: Any, texts: Sequence[str], config: LanguageConfig, out: Path, tell: Tell | None = None
) -> Any:
    """In place; -> the LM in eval mode."""
    out.mkdir(parents=True, exist_ok=True)
    say = tell or (lambda row: None)
    blocks_NL = cut(texts, tokenizer, config.block)
    rounds = max(1, round(config.replay * config.batch)) if config.replay else 0
    # the texts as tokens: of another tokenizer they are others
    begun_with = digest_of(lm, (str(row) for row in blocks_NL.tolist()))
    own_NL = _own_words(lm, tokenizer, config, out, begun_with) if rounds else None
    if config.rank:
        torch.manual_seed(config.seed)
        for weight in lm.parameters():
            weight.requires_grad_(False)
        add_lora(lm, {"r": config.rank, "lora_alpha": 2 * config.rank, **_blocks(lm, config.upper)})
    taught = {name: p for name, p in lm.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(taught.values(), lr=config.lr, weight_decay=0.0)
    first, seconds = _resume(out, taught, optimizer, config, begun_with)
    began = time.perf_counter() - seconds
    lm.train()
    for step in range(first, config.steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, config.steps, config.lr, config.warmup, LOWEST)
        torch.manual_seed(config.seed * 1_000_003 + step)
        ids_BL = _drawn(blocks_NL, config.batch, step, config.seed)
        if own_NL is not None:
            ids_BL = torch.cat([ids_BL, _drawn(own_NL, rounds, step, config.seed)])
        nll_B = _nll(lm, ids_BL, config.bf16)
        loss = nll_B[: config.batch].mean()
        losses = {"loss": float(loss.detach())}
        if own_NL is not None:
            own = nll_B[config.batch :].mean()
            losses["own words"] = float(own.detach())
            loss = (1 - config.replay) * loss + config.replay * own
        loss.backward()
        check_gradient(nn.utils.clip_grad_norm_(taught.values(), config.clip), loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        done = step + 1
        if done % config.save_every == 0 or done == config.steps:
            seconds = time.perf_counter() - began
            _save(out, taught, optimizer, config, begun_with, done, seconds)
            say({"step": done, "steps": config.steps, "seconds": seconds, **losses})
    return lm.eval()


def cut(texts: Sequence[str], tokenizer: Any, block: int) -> Tensor:
    """Texts, each with its end, one after the other -> (N, block) tokens; the rest is left out."""
    end = tokenizer.eos_token_id
    flat = [token for text in texts for token in [*tokenizer(text)["input_ids"], end]]
    if len(flat) < block:
        raise ConfigError(
            f"The texts have {len(flat)} tokens, and a sequence has {block}. Give more, or a smaller block.",
            code="NOTHING_TO_LEARN",
        )
    return torch.tensor(flat[: len(flat) // block * block]).view(-1, block)


@torch.no_grad()
def likelihoods(
    lm: Any, tokenizer: Any, texts: Sequence[str], longest: int = 256, batch: int = 8, bf16: bool = True
) -> np.ndarray:
    """-> of each text, its negative log-likelihood and how many tokens it is of (N, 2). A text is cut off at
    `longest` tokens; the first of them is given, not predicted."""
    lm.eval()
    ids = [tokenizer(text)["input_ids"][:longest] for text in texts]
    order = sorted(range(len(ids)), key=lambda n: len(ids[n]))  # texts as long as each other: less padding
    sums = np.zeros((len(texts), 2))
    for first in range(0, len(order), batch):
        some = order[first : first + batch]
        length = max(len(ids[n]) for n in some)
        ids_BL = torch.zeros(len(some), length, dtype=torch.long)
        there_BL = torch.zeros(len(some), length, dtype=torch.long)
        for row, n in enumerate(some):
            ids_BL[row, : len(ids[n])] = torch.tensor(ids[n])
            there_BL[row, : len(ids[n])] = 1
        with _precision(bf16):
            logits = lm(input_ids=ids_BL, attention_mask=there_BL).logits[:, :-1].float()
        nll_BL = F.cross_entropy(logits.transpose(1, 2), ids_BL[:, 1:], reduction="none") * there_BL[:, 1:]
        sums[some, 0] = nll_BL.double().sum(1).numpy()
        sums[some, 1] = there_BL[:, 1:].sum(1).numpy()
    return sums


def perplexity(sums_N2: np.ndarray) -> float:
    return math.exp(min(sums_N2[:, 0].sum() / max(sums_N2[:, 1].sum(), 1), 700))


def _own_words(lm: Any, tokenizer: Any, config: LanguageConfig, out: Path, begun_with: str) -> Tensor:
    """What the LM writes unasked, drawn token by token at temperature 1."""
    path = out / REPLAY
    meta = {"config": json.dumps(asdict(config)), "begun with": begun_with}
    if path.is_file():
        with safe_open(path, "pt") as file:
            if file.metadata() == meta:
                return file.get_tensor("ids")
    lm.eval()
    torch.manual_seed(config.seed)
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    ids_BL = torch.full((config.replayed, 1), start)
    past: Any = None
    with torch.no_grad():
        while ids_BL.shape[1] < config.block:
            with _precision(config.bf16):
                given = ids_BL if past is None else ids_BL[:, -1:]
                there = torch.ones_like(ids_BL)
                output = lm(input_ids=given, attention_mask=there, past_key_values=past, use_cache=True)
            past = output.past_key_values
            drawn_B1 = output.logits[:, -1].float().softmax(-1).multinomial(1)
            ids_BL = torch.cat([ids_BL, drawn_B1], 1)
    save_file({"ids": ids_BL}, path, metadata=meta)
    return ids_BL


def _nll(lm: Any, ids_BL: Tensor, bf16: bool) -> Tensor:
    """Of each sequence, the mean over its tokens."""
    with _precision(bf16):
        logits = lm(input_ids=ids_BL, attention_mask=torch.ones_like(ids_BL)).logits[:, :-1].float()
    return F.cross_entropy(logits.transpose(1, 2), ids_BL[:, 1:], reduction="none").mean(1)


def _blocks(lm: Any, upper: float) -> dict[str, Any]:
    """For peft: which blocks are adapted."""
    count = int(lm.config.num_hidden_layers)
    lowest = count - max(1, round(upper * count))
    if not lowest:
        return {}
    # with a choice of blocks peft wants the names of the layers, not "all-linear"
    linear = {
        name.rpartition(".")[2]
        for name, module in lm.named_modules()
        if type(module).__name__ in ("Linear", "Conv1D") and any(part.isdigit() for part in name.split("."))
    }
    return {"layers_to_transform": list(range(lowest, count)), "target_modules": sorted(linear)}


def _drawn(blocks_NL: Tensor, batch: int, step: int, seed: int) -> Tensor:
    """Every sequence once before any comes again, in an order of its own each time."""
    rows = []
    for slot in range(step * batch, (step + 1) * batch):
        turn, place = divmod(slot, len(blocks_NL))
        rows.append(int(np.random.default_rng([seed, turn]).permutation(len(blocks_NL))[place]))
    return blocks_NL[rows]


def _precision(bf16: bool) -> AbstractContextManager[Any]:
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16)


def _save(
    out: Path,
    taught: dict[str, Tensor],
    optimizer: Any,
    config: LanguageConfig,
    begun_with: str,
    step: int,
    seconds: float,
) -> None:
    tensors = {f"weight/{name}": p.detach().clone().contiguous() for name, p in taught.items()}
    for name, p in taught.items():
        for key, value in optimizer.state[p].items():
            tensors[f"optimizer/{name}//{key}"] = torch.as_tensor(value).clone().contiguous()
    meta = {"config": json.dumps(asdict(config)), "begun with": begun_with}
    meta |= {"step": str(step), "seconds": str(seconds)}
    part = out / f"{STATE}.part"
    save_file(tensors, part, metadata=meta)
    part.replace(out / STATE)


def _resume(
    out: Path, taught: dict[str, Tensor], optimizer: Any, config: LanguageConfig, begun_with: str
) -> tuple[int, float]:
    path = out / STATE
    if not path.is_file():
        return 0, 0.0
    with safe_open(path, "pt") as file:
        meta = file.metadata()
    if json.loads(meta["config"]) != asdict(config) or meta.get("begun with") != begun_with:
        raise CheckpointError(
            f"{path} was begun with other settings, texts or weights. Use another folder, or delete it to "
            "start again.",
            code="TRAINING_DIFFERS",
        )
    state: dict[str, dict[str, Tensor]] = {}
    for key, value in load_file(path).items():
        kind, name = key.split("/", 1)
        if kind == "weight":
            with torch.no_grad():
                taught[name].copy_(value)
            continue
        name, field = name.split("//")
        state.setdefault(name, {})[field] = value
    for name, values in state.items():
        optimizer.state[taught[name]] = values
    return int(meta["step"]), float(meta["seconds"])
