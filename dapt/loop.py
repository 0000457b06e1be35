"""Model + objective + batches -> the trained model: the one training loop, on `accelerate`.

    accelerate launch -m ...    several processes (DDP, FSDP); without it, one

Every random number follows from the seed, the step and the place of an example, none from what was drawn
before. So a state is weights, their running mean, the optimizer and the number of the step, in safetensors
and JSON; a training that was killed at any moment goes on from the last state to the same weights, bit for
bit on a CPU. Knows no corpus and no particular loss.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, gather_object
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dapt.objectives.objective import Objective
from dapt.schedule import TrainingError, groups_of, rate
from dapt.state import under
from mla_med.errors import CheckpointError, ConfigError
from mla_med.model.mla import MLAModel

if TYPE_CHECKING:
    from dapt.batches import Batch, Batches

Tell = Callable[[dict[str, Any]], None]
PRECISIONS = ("no", "bf16")
STATE, BEST, LOG = "state.safetensors", "best.safetensors", "log.jsonl"
EMA_RAMP = 10
"""The mean forgets faster at first: decay is at most (1 + step) / (EMA_RAMP + step)."""


@dataclass(frozen=True, slots=True)
class LoopConfig:
    steps: int = 1000
    """Of the optimizer."""
    lr: float = 8e-4
    """Peak of AdamW, after warm-up."""
    image_lr: float = 2.0
    """Times `lr` for the image encoder: convolutions with batch statistics bear more than attention."""
    weight_decay: float = 0.02
    warmup: float = 0.06
    """Share of the steps in which the learning rate rises; then it falls as a cosine."""
    clip: float = 1.0
    """Largest gradient norm."""
    ema: float = 0.995
    """Decay of the running mean of the weights, which is what is measured and kept."""
    precision: str = "no"
    """no (float32) or bf16, of matrix products and convolutions; weights and their mean are float32."""
    seed: int = 0
    save_every: int = 200
    """Steps between two states: so much is done again after a kill at most."""
    validate_every: int = 200
    log_every: int = 20
    stop_on: str = ""
    """A validation number, as "volume" or "loss": its best weights are kept, and training stops when it has
    not become better for `patience` validations. Empty: neither."""
    higher_is_better: bool = False
    patience: int = 5
    device: str = "auto"
    """auto: a GPU where there is one; cpu."""

    def __post_init__(self):
        if self.precision not in PRECISIONS:
            raise ConfigError(f"No precision '{self.precision}'; there are: {', '.join(PRECISIONS)}.")
        if self.device not in ("auto", "cpu"):
            raise ConfigError(f"No device '{self.device}'; there are: auto, cpu.")
        if min(self.steps, self.save_every, self.validate_every, self.log_every, self.patience) < 1:
            raise ConfigError("steps, save_every, validate_every, log_every and patience are 1 or more.")


@dataclass(slots=True)
class Progress:
    """What a state says beside its tensors."""

    step: int = 0
    seconds: float = 0.0
    """Of training alone: without validation and saving."""
    tokens: int = 0
    studies: int = 0
    best: float | None = None
    best_step: int = 0
    worse: int = 0
    """Validations since the best one."""
    stopped: bool = False


class Taught(nn.Module):
    """The model and what teaches it, as the one module that processes share."""

    def __init__(self, model: MLAModel, objective: Objective):
        super().__init__()
        self.model, self.objective = model, objective
        trained = [(p.numel(), name) for name, p in self.named_parameters() if p.requires_grad]
        self.anchor = min(trained)[1]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        # where a batch teaches nothing (no pair in it), other processes still wait for this one's gradient
        anchor = self.get_parameter(self.anchor).sum() * 0.0
        return {**self.objective(self.model, batch), "": anchor}


class Loop:
    """Holds what has to survive a kill."""

    def __init__(
        self,
        model: MLAModel,
        objective: Objective,
        config: LoopConfig,
        out: Path,
        tell: Tell | None = None,
    ):
        self.config, self.out, self.tell = config, out, tell or (lambda row: None)
        out.mkdir(parents=True, exist_ok=True)
        self.accelerator = accelerator_of(config)
        if self.accelerator.num_processes > 1 and self.accelerator.device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        self.plain = Taught(model, objective)
        self.weights = objective.weights(model)
        groups = groups_of(self.plain, "model.image_encoder.", config.image_lr, config.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=config.lr)
        self.taught, self.optimizer = self.accelerator.prepare(self.plain, optimizer)
        self.average = [value.detach().clone() for value in _held(self.taught)]
        self.progress = Progress()
        self.board: Any = None
        self._resume()

    def run(
        self,
        batches: Batches,
        held_out: Callable[[], Iterable[Batch]] | None = None,
        validate: Callable[[MLAModel], dict[str, float]] | None = None,
    ) -> MLAModel:
        """To the last step, or to an early stop; -> the model with the averaged weights (the best ones where
        `stop_on` is set), in eval mode; with FSDP its shard of it, see `whole`. `held_out`: batches whose
        losses are measured; `validate`: what else is (of the plain model: not with FSDP)."""
        with _own_randomness(), self._writing_board():
            if not self.progress.stopped:
                self._train(batches, held_out, validate)
        self._adopt_average()
        return self.plain.model.eval()

    def _train(self, batches: Batches, held_out, validate) -> None:
        config, progress = self.config, self.progress
        ranks = self.accelerator.process_index, self.accelerator.num_processes
        kept = _Means()
        began = time.perf_counter()
        self.taught.train()
        for step, micros in batches.stream(progress.step, config.steps, *ranks):
            losses, norm, tokens, studies = self.step(step, micros)
            kept.add(losses, norm)
            progress.step = step + 1
            progress.tokens += tokens
            progress.studies += studies
            last = progress.step == config.steps
            if progress.step % config.log_every == 0 or last:
                progress.seconds += time.perf_counter() - began
                self._log(self._over_processes(kept.taken()) | {"lr": self.rate(step)})
                began = time.perf_counter()
            is_due = held_out is not None or validate is not None
            if is_due and (progress.step % config.validate_every == 0 or last):
                progress.seconds += time.perf_counter() - began
                self._validate(held_out, validate)
                began = time.perf_counter()
            if progress.step % config.save_every == 0 or last or progress.stopped:
                progress.seconds += time.perf_counter() - began
                self._check(norm)
                self.save()
                began = time.perf_counter()
            if progress.stopped:
                return

    def step(self, step: int, micros: list[Batch]) -> tuple[dict[str, Tensor], Tensor, int, int]:
        """One step of the optimizer; -> losses over all micro-batches and processes, the gradient's norm
        before it was clipped, and how many tokens and studies taught it."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(step) * group["lr_scale"]
        losses, tokens, studies = self.backward(step, micros)
        norm = self.accelerator.clip_grad_norm_(self.taught.parameters(), self.config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.plain.objective.after_step(self.plain.model)
        self._average(step)
        return losses, norm, tokens, studies

    def backward(self, step: int, micros: list[Batch]) -> tuple[dict[str, Tensor], int, int]:
        """Gradients of the whole step: each loss is the mean over its things in all micro-batches of all
        processes, whatever the share of each."""
        objective, world = self.plain.objective, self.accelerator.num_processes
        counts = [objective.counts(batch) | {"": float(batch.size)} for batch in micros]
        totals = self._summed(counts, micros)
        sums: dict[str, Tensor] = {}
        for micro, batch in enumerate(micros):
            # as many processes would draw it, if they drew one example each
            torch.manual_seed(_seed(self.config.seed, step, micro, self.accelerator.process_index))
            last = micro == len(micros) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.taught):
                losses = self.taught(batch.to(self.accelerator.device))
                terms = []
                for name, loss in losses.items():
                    share = counts[micro].get(name, float(batch.size)) / max(
                        totals.get(name, totals[""]), 1.0
                    )
                    terms.append(loss * (share * world * self.weights.get(name, 1.0)))
                    if name:
                        sums[name] = sums.get(name, 0.0) + loss.detach() * (share * world)
                self.accelerator.backward(torch.stack(terms).sum())
        if world > 1:
            for name, total in totals.items():
                # what others alone have is 0 here, so that the mean over the processes is the loss
                if total and name not in ("tokens", ""):
                    sums.setdefault(name, torch.zeros((), device=self.accelerator.device))
        return sums, int(totals["tokens"]), int(totals[""])

    def _summed(self, counts: list[dict[str, float]], micros: list[Batch]) -> dict[str, float]:
        totals: dict[str, float] = {"tokens": float(sum(batch.tokens for batch in micros))}
        for one in counts:
            for name, value in one.items():
                totals[name] = totals.get(name, 0.0) + value
        if self.accelerator.num_processes == 1:
            return totals
        names = sorted(totals)  # the same in every process: an objective counts the same things of any batch
        values = torch.tensor([totals[name] for name in names], device=self.accelerator.device)
        return dict(zip(names, self.accelerator.reduce(values, "sum").tolist(), strict=True))

    def _over_processes(self, row: dict[str, float]) -> dict[str, float]:
        """The mean of what every process saw of its own share."""
        if self.accelerator.num_processes == 1:
            return row
        rows = gather_object([row])
        names = dict.fromkeys(name for one in rows for name in one)
        return {name: fmean(one[name] for one in rows if name in one) for name in names}

    def rate(self, step: int) -> float:
        return rate(step, self.config.steps, self.config.lr, self.config.warmup)

    @torch.no_grad()
    def _average(self, step: int) -> None:
        decay = min(self.config.ema, (1 + step) / (EMA_RAMP + step))
        floats, means = [], []
        for mean, value in zip(self.average, _held(self.taught), strict=True):
            if mean.is_floating_point():
                floats.append(value.detach())
                means.append(mean)
            else:
                mean.copy_(value)
        torch._foreach_lerp_(means, floats, 1 - decay)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The averaged weights in the place of the trained ones."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for mean, value in zip(self.average, _held(self.taught), strict=True):
            kept = value.detach().clone()
            value.copy_(mean)
            mean.copy_(kept)

    def whole(self) -> dict[str, Tensor]:
        """All weights, of model and objective, on the CPU; every process has to ask."""
        return self._full_weights()

    # Measured

    def _validate(self, held_out, validate) -> None:
        began = time.perf_counter()
        self.taught.eval()
        numbers: dict[str, float] = {}
        with self.averaged():
            if held_out is not None:
                numbers |= self.measure(held_out())
            if validate is not None:
                numbers |= validate(self.plain.model)
            self._judge(numbers)
        self.taught.train()
        row = {f"validation {name}": value for name, value in numbers.items()}
        self._log(row | {"validation_s": time.perf_counter() - began})

    @torch.no_grad()
    def measure(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Every loss over all batches, and their weighted sum as "loss"."""
        was = self.taught.training
        self.taught.eval()
        numbers = losses_over(self.taught, self.plain, batches, self.accelerator.device)
        self.taught.train(was)
        return numbers

    def _judge(self, numbers: dict[str, float]) -> None:
        config, progress = self.config, self.progress
        if not config.stop_on:
            return
        if config.stop_on not in numbers:
            raise ConfigError(
                f"No validation number '{config.stop_on}' to stop on; there are: {', '.join(numbers)}."
            )
        value = numbers[config.stop_on]
        sign = 1.0 if config.higher_is_better else -1.0
        if progress.best is None or sign * value > sign * progress.best:
            progress.best, progress.best_step, progress.worse = value, progress.step, 0
            if self.accelerator.is_main_process or self._is_sharded:
                tensors = {f"average/{k}": v for k, v in self._full_weights().items()}
                self._write(self.out / BEST, tensors, {"step": str(progress.step), "value": repr(value)})
        else:
            progress.worse += 1
            progress.stopped = progress.worse >= config.patience

    def _adopt_average(self) -> None:
        """From here on the weights are the averaged ones; of several processes, in each."""
        self.accelerator.wait_for_everyone()
        best = self.out / BEST
        if self.config.stop_on and best.is_file():
            self._load_weights(under(load_file(best), "average/"))
        else:
            self._swap()

    # Said

    def _log(self, row: dict[str, Any]) -> None:
        progress = self.progress
        seconds = max(progress.seconds, 1e-9)
        row = {
            "step": progress.step,
            "steps": self.config.steps,
            **{k: float(v) for k, v in row.items()},
            "seconds": progress.seconds,
            "tokens_per_s": progress.tokens / seconds,
            "studies_per_s": progress.studies / seconds,
        }
        self._check(row.get("gradient", 0.0))
        row = {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in row.items()}
        if not self.accelerator.is_main_process:
            return
        with (self.out / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self.board is not None:
            for name, value in row.items():
                self.board.add_scalar(name, value, progress.step)
        self.tell(row)

    def _check(self, norm: Tensor | float) -> None:
        """Before anything is kept of a training that went astray."""
        if not math.isfinite(float(norm)):
            raise TrainingError(
                f"The gradient is no number any more at step {self.progress.step} in {self.out}. Take a "
                "lower lr, or precision 'no', and another folder, or delete this one."
            )

    @contextmanager
    def _writing_board(self) -> Iterator[None]:
        """TensorBoard, where it is installed."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            yield
            return
        if not self.accelerator.is_main_process:
            yield
            return
        self.board = SummaryWriter(str(self.out / "tensorboard"), purge_step=self.progress.step + 1)
        try:
            yield
        finally:
            self.board.close()
            self.board = None

    # Kept

    @property
    def _is_sharded(self) -> bool:
        return self.accelerator.distributed_type.name == "FSDP"

    def _full_weights(self) -> dict[str, Tensor]:
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights: Any = get_model_state_dict(self.taught, options=options)
        return weights

    def _load_weights(self, tensors: dict[str, Any]) -> None:
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

        set_model_state_dict(self.taught, tensors, options=StateDictOptions(full_state_dict=True))

    def save(self) -> None:
        """Tensors as safetensors, counters as JSON: nothing here can run code when it is read."""
        if self.accelerator.is_main_process or self._is_sharded:
            tensors = {f"model/{k}": v for k, v in self._full_weights().items()}
            with self.averaged():
                tensors |= {f"average/{k}": v.clone() for k, v in self._full_weights().items()}
            for name, state in self._optimizer_state().items():
                tensors |= {f"optimizer/{name}//{key}": torch.as_tensor(v) for key, v in state.items()}
            meta = {
                "progress": json.dumps(asdict(self.progress)),
                "config": json.dumps(asdict(self.config), sort_keys=True),
            }
            self._write(self.out / STATE, tensors, meta)
        self.accelerator.wait_for_everyone()

    def _optimizer_state(self) -> dict[str, dict[str, Any]]:
        """By the name of the parameter; one that was never taught has none."""
        optimizer = self.optimizer.optimizer
        if self._is_sharded:
            from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

            options = StateDictOptions(full_state_dict=True, cpu_offload=True)
            whole: Any = get_optimizer_state_dict(self.taught, optimizer, options=options)
            return whole["state"]
        named = self.plain.named_parameters()
        return {name: optimizer.state[p] for name, p in named if p in optimizer.state}

    def _write(self, path: Path, tensors: dict[str, Tensor], meta: dict[str, str]) -> None:
        if not self.accelerator.is_main_process:
            return
        part = path.with_name(path.name + ".part")
        save_file({k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()}, part, metadata=meta)
        part.replace(path)

    def _resume(self) -> None:
        path = self.out / STATE
        if not path.is_file():
            if self.accelerator.is_main_process:
                # of a training whose state was deleted, or that died before its first
                for name in (LOG, BEST):
                    (self.out / name).unlink(missing_ok=True)
            self.accelerator.wait_for_everyone()
            return
        with safe_open(path, "pt") as file:
            meta = file.metadata()
        begun = asdict(LoopConfig()) | json.loads(meta["config"])
        # what does not decide about the weights may change
        free = dict.fromkeys(("save_every", "log_every", "device"), None)
        if begun | free != asdict(self.config) | free:
            raise CheckpointError(
                f"{path} was begun with other settings. Use another folder, or delete it to start again.",
                code="TRAINING_DIFFERS",
            )
        tensors = load_file(path)
        self._load_weights(under(tensors, "average/"))
        self.average = [value.detach().clone() for value in _held(self.taught)]
        self._load_weights(under(tensors, "model/"))
        self._load_optimizer(under(tensors, "optimizer/"))
        self.progress = Progress(**json.loads(meta["progress"]))
        self._cut_log()
        self.tell({"resumed": True, "step": self.progress.step, "steps": self.config.steps})

    def _load_optimizer(self, tensors: dict[str, Tensor]) -> None:
        optimizer = self.optimizer.optimizer
        state: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            name, kind = key.split("//")
            state.setdefault(name, {})[kind] = value
        if self._is_sharded:
            from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

            options = StateDictOptions(full_state_dict=True, strict=False)
            groups = self.optimizer.state_dict()["param_groups"]
            whole = {"state": state, "param_groups": groups}
            set_optimizer_state_dict(self.taught, optimizer, whole, options=options)
            return
        named = dict(self.plain.named_parameters())
        for name, values in state.items():
            # AdamW counts its steps on the CPU
            there = {k: v if k == "step" else v.to(named[name].device) for k, v in values.items()}
            optimizer.state[named[name]] = there

    def _cut_log(self) -> None:
        """Without the steps after the state: they are taken again."""
        path = self.out / LOG
        if not self.accelerator.is_main_process or not path.is_file():
            return
        rows = []
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            # the last line of a process that was killed may be cut off
            if line.endswith("\n") and json.loads(line)["step"] <= self.progress.step:
                rows.append(line)
        part = path.with_name(path.name + ".part")
        part.write_text("".join(rows), encoding="utf-8")
        part.replace(path)


# Small parts of the loop


@dataclass(slots=True)
class _Means:
    """Of the losses since they were last said. They stay on the device: asking for a number waits for it."""

    losses: dict[str, list[Tensor]] = field(default_factory=dict)
    norms: list[Tensor] = field(default_factory=list)

    def add(self, losses: dict[str, Tensor], norm: Tensor) -> None:
        for name, loss in losses.items():
            self.losses.setdefault(name, []).append(loss)
        self.norms.append(norm)

    def taken(self) -> dict[str, float]:
        row = {name: float(torch.stack(values).mean()) for name, values in self.losses.items()}
        row["gradient"] = float(torch.stack([torch.as_tensor(norm) for norm in self.norms]).mean())
        self.losses, self.norms = {}, []
        return row


def losses_over(
    taught: nn.Module, plain: Taught, batches: Iterable[Batch], device: torch.device
) -> dict[str, float]:
    """Every loss as the mean over its things in all batches."""
    weights = plain.objective.weights(plain.model)
    sums: dict[str, float] = {}
    totals: dict[str, float] = {}
    for n, batch in enumerate(batches):
        torch.manual_seed(_seed(0, n, 0, 0))
        counts = plain.objective.counts(batch)
        for name, loss in taught(batch.to(device)).items():
            count = counts.get(name, float(batch.size))
            if name and count:
                sums[name] = sums.get(name, 0.0) + float(loss) * count
                totals[name] = totals.get(name, 0.0) + count
    means = {name: value / totals[name] for name, value in sums.items()}
    return {**means, "loss": sum(weights.get(name, 1.0) * value for name, value in means.items())}


def accelerator_of(config: LoopConfig) -> Accelerator:
    """Different batches use different parts of the model, so DDP has to look for those without gradient."""
    # each stage has a precision of its own
    AcceleratorState._reset_state()
    return Accelerator(
        mixed_precision=config.precision,
        cpu=config.device == "cpu",
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )


def _held(taught: nn.Module) -> list[Tensor]:
    return [*taught.parameters(), *taught.buffers()]


def _seed(seed: int, step: int, micro: int, rank: int) -> int:
    """Of what the model itself draws (dropout, token selection) in one micro-step."""
    return ((seed * 1_000_003 + step) * 1_009 + micro) * 4_099 + rank


@contextmanager
def _own_randomness() -> Iterator[None]:
    """The caller's random numbers go on as if nothing had been trained."""
    state = torch.random.get_rng_state()
    try:
        yield
    finally:
        torch.random.set_rng_state(state)
