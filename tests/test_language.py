"""A decoder adapted to texts: it learns them, goes on after a kill, and mixes with nothing else."""

from __future__ import annotations

import random
from copy import deepcopy

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from dapt.language import REPLAY, LanguageConfig, adapt_lm, likelihoods, perplexity
from dapt.schedule import TrainingError
from dapt.tokenizer import train_tokenizer
from evaluation.linter import random_findings
from mla_med.errors import CheckpointError
from mla_med.report.render import body_text, render_report

TEXTS = [body_text(render_report(random_findings("chest_ct", random.Random(n)))) for n in range(24)]
CONFIG = LanguageConfig(steps=16, block=32, replayed=4, lr=5e-3, save_every=4, bf16=False)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, vocab_size=320)


@pytest.fixture(scope="module")
def lm(tokenizer):
    torch.manual_seed(0)
    sizes = {"n_layer": 2, "n_embd": 32, "n_head": 4, "n_positions": 128, "vocab_size": len(tokenizer)}
    still = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return GPT2LMHeadModel(GPT2Config(**sizes, **still, **ends)).eval()


def killed_at(step):
    def tell(row):
        if row["step"] == step:
            raise KeyboardInterrupt

    return tell


def weights_of(lm):
    return torch.cat([p.detach().ravel() for _, p in sorted(lm.named_parameters())])


@pytest.mark.parametrize(("rank", "share"), [(0, 0.7), (4, 0.98)])
def test_a_decoder_learns_texts_and_after_a_kill_the_same(lm, tokenizer, tmp_path, rank, share):
    config = LanguageConfig(**{name: getattr(CONFIG, name) for name in CONFIG.__slots__} | {"rank": rank})
    before = perplexity(likelihoods(lm, tokenizer, TEXTS[:4], 100, bf16=False))
    unbroken = adapt_lm(deepcopy(lm), tokenizer, TEXTS, config, tmp_path / "a")
    assert perplexity(likelihoods(unbroken, tokenizer, TEXTS[:4], 100, bf16=False)) < share * before
    with pytest.raises(KeyboardInterrupt):
        adapt_lm(deepcopy(lm), tokenizer, TEXTS, config, tmp_path / "b", killed_at(8))
    steps = []
    tell = lambda row: steps.append(row["step"])  # noqa: E731
    resumed = adapt_lm(deepcopy(lm), tokenizer, TEXTS, config, tmp_path / "b", tell)
    assert steps == [12, 16]
    torch.testing.assert_close(weights_of(resumed), weights_of(unbroken), atol=1e-6, rtol=1e-5)


def test_a_state_goes_on_with_its_texts_and_its_decoder_alone(lm, tokenizer, tmp_path):
    adapt_lm(deepcopy(lm), tokenizer, TEXTS, CONFIG, tmp_path)
    with pytest.raises(CheckpointError, match="other settings, texts or weights"):
        adapt_lm(deepcopy(lm), tokenizer, TEXTS[1:], CONFIG, tmp_path)
    other = deepcopy(lm)
    with torch.no_grad():
        other.transformer.wte.weight.mul_(1.1)
    with pytest.raises(CheckpointError, match="other settings, texts or weights"):
        adapt_lm(other, tokenizer, TEXTS, CONFIG, tmp_path)


def test_what_another_decoder_wrote_is_not_taken_for_its_own(lm, tokenizer, tmp_path):
    """Killed before its first state, a folder holds words alone."""

    def begun(block):
        config = LanguageConfig(steps=4, save_every=4, block=block, replayed=4, bf16=False)
        adapt_lm(deepcopy(lm), tokenizer, TEXTS, config, tmp_path)
        (tmp_path / "language.safetensors").unlink()
        return (tmp_path / REPLAY).read_bytes()

    first = begun(32)
    assert begun(32) == first
    assert begun(16) != first


def test_a_gradient_that_is_no_number_ends_the_training_before_it_is_kept(lm, tokenizer, tmp_path):
    broken = deepcopy(lm)
    with torch.no_grad():
        broken.transformer.h[0].mlp.c_fc.weight[0, 0] = torch.nan
    config = LanguageConfig(steps=4, block=32, replay=0.0, save_every=1, bf16=False)
    with pytest.raises(TrainingError, match="no number any more"):
        adapt_lm(broken, tokenizer, TEXTS, config, tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))
