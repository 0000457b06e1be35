"""Memory tokens and a prompt -> logits of the next report token, by any causal LM of transformers.

The small GPT-2 that ships has cross-attention of its own. Every other causal LM looks at the memory
through gated adapters before some of its blocks (Flamingo: Alayrac et al., NeurIPS 2022, section 2.2):
x + tanh(gate) * attention(x, memory), the gate starting at zero, so that the LM starts as it was trained.
They hang on forward hooks, as a block of any architecture takes the hidden states first; a prefix of
memory tokens would disturb a trained LM from the first step on, and take its positions and its cache.

Knows nothing of images or findings.
"""

# B batch, R report tokens, S memory tokens, D width of the fused tokens, E width of the decoder

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from mla_med.errors import ConfigError

LOOKS = 8
"""Most blocks that look at the memory, evenly spaced: Flamingo's larger models let every fourth look."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


class ReportDecoder(nn.Module):
    def __init__(self, config: PreTrainedConfig, width: int, heads: int, folder: Path | None = None):
        """`folder`: where the LM's weights are read from; None is a random start."""
        super().__init__()
        self.lm = _new_lm(config) if folder is None else read_lm(folder)
        # transformers guesses it from the class name, fails for GPT-2, and warns.
        self.lm.loss_type = "ForCausalLM"
        self.project: nn.Module
        if has_own_attention(config):
            self.project = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, config.hidden_size))
            return
        self.project = nn.LayerNorm(width)
        blocks = _blocks_of(self.lm)
        step = -(-len(blocks) // LOOKS)
        self.looks = nn.ModuleList(GatedLook(config.hidden_size, width, heads) for _ in blocks[::step])
        for look, block in zip(self._looks(), blocks[::step], strict=True):
            # a bound method is copied with its module by deepcopy, a closure would still see the old one
            block.register_forward_pre_hook(look.before, with_kwargs=True)

    def memory_BSE(self, tokens_BSD: Tensor) -> Tensor:
        return self.project(tokens_BSD)

    def forward(self, input_ids, memory_BSE: Tensor | None, memory_mask_BS: Tensor | None, **kwargs):
        """Without a memory it is a plain causal LM, for pre-training on report text."""
        if not hasattr(self, "looks"):
            return self.lm(
                input_ids=input_ids,
                encoder_hidden_states=memory_BSE,
                encoder_attention_mask=memory_mask_BS,
                **kwargs,
            )
        for look in self._looks():
            look.remember(memory_BSE, memory_mask_BS)
        try:
            return self.lm(input_ids=input_ids, **kwargs)
        finally:
            for look in self._looks():
                look.remember(None, None)

    def _looks(self) -> list[GatedLook]:
        return [look for look in self.looks if isinstance(look, GatedLook)]


class GatedLook(nn.Module):
    """Hidden states of a decoder look at the memory, as much as the gate lets them."""

    def __init__(self, hidden: int, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(hidden)
        self.query = nn.Linear(hidden, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, hidden, bias=False)
        self.gate = nn.Parameter(torch.zeros(1))
        self.remember(None, None)

    def remember(self, memory_BSD: Tensor | None, mask_BS: Tensor | None) -> None:
        self._memory, self._mask = memory_BSD, mask_BS

    def before(self, block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict] | None:
        """A forward pre-hook of `block`: it gets the hidden states after their look."""
        if self._memory is None:
            return None
        if args:
            return (self(args[0], self._memory, self._mask), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": self(kwargs["hidden_states"], self._memory, self._mask)}

    def forward(self, hidden_BRE: Tensor, memory_BSD: Tensor, mask_BS: Tensor | None) -> Tensor:
        query, key, value = (
            x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for x in (self.query(self.norm(hidden_BRE)), *self.key_value(memory_BSD).chunk(2, -1))
        )
        mask = None if mask_BS is None else mask_BS.bool()[:, None, None, :]
        seen = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return hidden_BRE + self.gate.tanh() * self.out(seen.transpose(1, 2).flatten(2))


def has_own_attention(config: PreTrainedConfig) -> bool:
    return bool(getattr(config, "add_cross_attention", False))


def read_decoder_config(folder: Path) -> PreTrainedConfig:
    """The configuration of the causal LM in a local folder; ConfigError where there is none."""
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, **_gguf(folder))
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"No causal language model at {folder}: {_first_line(error)} Give a folder as "
            "save_pretrained writes it (config.json and safetensors), or one with a single .gguf file.",
            code="DECODER_UNREADABLE",
        ) from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ConfigError(
            f"The model at {folder} is a {config.model_type}, which writes no text from left to right. "
            "Give a causal language model, such as GPT-2, Llama, Qwen or DeepSeek-V3.",
            code="DECODER_NOT_CAUSAL",
        )
    # would be written into every checkpoint: a path of the machine that trained it
    config._name_or_path = ""
    return config


def read_lm(folder: Path) -> PreTrainedModel:
    """The LM with its weights in float32. Pickled weights are not read: they can run code."""
    gguf: dict[str, Any] = dict(_gguf(folder))
    try:
        lm, loaded = AutoModelForCausalLM.from_pretrained(
            folder,
            local_files_only=True,
            dtype=torch.float32,
            output_loading_info=True,
            **(gguf or {"use_safetensors": True}),
        )
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise ConfigError(
            f"The weights at {folder} cannot be read: {_first_line(error)} They have to be safetensors, or "
            "one .gguf file (pip install gguf accelerate).",
            code="DECODER_UNREADABLE",
        ) from error
    # transformers fills what the files lack with random numbers
    if missing := loaded["missing_keys"]:
        raise ConfigError(
            f"The weights at {folder} lack {min(missing)}, which its config.json wants. Copy them again.",
            code="DECODER_UNREADABLE",
        )
    return lm


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer of a local folder; None where it holds none."""
    gguf = _gguf(folder)
    if not gguf and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return None
    # AutoTokenizer would look up the kind of model in config.json, and ours is none that it knows
    kind = PreTrainedTokenizerFast if (folder / "tokenizer.json").is_file() else AutoTokenizer
    return kind.from_pretrained(folder, local_files_only=True, **gguf)


def add_lora(lm: PreTrainedModel, settings: dict[str, Any]) -> None:
    """Low-rank adapters (Hu et al., ICLR 2022) in every linear layer of the LM but its head, in place; what
    the LM had is frozen. `settings` are arguments of peft.LoraConfig."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ConfigError(
            "LoRA wants the package peft: pip install 'mla_med[lora]', or leave `lora` out of the "
            "configuration.",
            code="EXTRA_MISSING",
        ) from error
    inject_adapter_in_model(LoraConfig(**{"target_modules": "all-linear", **settings}), lm)


def merge_lora(lm: PreTrainedModel) -> None:
    """Adds what the adapters learned to the weights, and removes them: the same logits, no peft needed."""
    from peft.tuners.lora import LoraLayer

    adapted = [(name, module) for name, module in lm.named_modules() if isinstance(module, LoraLayer)]
    outer = [(n, m) for n, m in adapted if not any(n.startswith(f"{other}.") for other, _ in adapted)]
    for name, adapter in outer:
        base: Any = adapter
        # the experts of a mixture wear one adapter over another
        while isinstance(base, LoraLayer):
            base.merge(safe_merge=True)
            base = base.base_layer
        parent, _, own = name.rpartition(".")
        setattr(lm.get_submodule(parent), own, base)
    lm.requires_grad_(True)


def _new_lm(config: PreTrainedConfig) -> PreTrainedModel:
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)


def _blocks_of(lm: PreTrainedModel) -> list[nn.Module]:
    """The blocks of a causal LM: its first list of as many modules as it has hidden layers."""
    layers = lm.config.num_hidden_layers
    for module in lm.modules():
        if isinstance(module, nn.ModuleList) and len(module) == layers:
            return list(module)
    raise ConfigError(
        f"{type(lm).__name__} keeps its {layers} blocks in no list, so nothing can look at the images "
        "between them. Take another architecture.",
        code="DECODER_UNSUPPORTED",
    )


def _gguf(folder: Path) -> dict[str, str]:
    """The argument that names a folder's only GGUF file, where it has no config.json."""
    files = sorted(folder.glob("*.gguf"))
    if (folder / "config.json").is_file() or len(files) != 1:
        return {}
    return {"gguf_file": files[0].name}


def _first_line(error: Exception) -> str:
    words = str(error).strip().splitlines() or [type(error).__name__]
    return words[0].rstrip(".") + "."
