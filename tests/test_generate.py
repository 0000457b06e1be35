"""Constrained writing: nothing but the legal slots can be written, whatever the weights say."""

from __future__ import annotations

import pytest
import torch

from dapt.tokenizer import train_tokenizer
from mla_med.drafting import write
from mla_med.model.config import tiny
from mla_med.model.generate import SlotMachine, write_text
from mla_med.model.mla import MLAModel
from mla_med.phantom.plain.cohort import make_phantom
from mla_med.report.check import check_report
from mla_med.report.render import body_text, complete_findings
from mla_med.types import ClinicalContext, Presence

TEXTS = [body_text(make_phantom(seed).report) for seed in range(60)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, vocab_size=600)


@pytest.fixture(scope="module")
def model(tokenizer):
    """Random weights: the most adversarial writer there is."""
    torch.manual_seed(3)
    sizes = {"n_layer": 1, "n_embd": 32, "n_inner": 64, "n_head": 4, "n_positions": 384}
    model = MLAModel(tiny(vocab_size=600, decoder=sizes)).eval()
    model.tokenizer = tokenizer
    return model


def _seen(model, seed=0):
    from mla_med.drafting import see

    image = torch.rand(3, 32, 32, 32, generator=torch.Generator().manual_seed(seed))
    return see(image, torch.eye(4), "61 years, F, cough", model)


def test_the_tokenizer_gives_back_every_text_and_keeps_digits_apart(tokenizer):
    for text in [*TEXTS, "≥ 3 mm ± 0.5 µm 肺 \n x"]:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer("128")["input_ids"]) == 3


def test_sentences_tokenize_the_same_alone_and_together(tokenizer):
    parts = [
        "FINDINGS:",
        " No emphysema.",
        " There is a 12 mm nodule in the left upper lobe.",
        "\nIMPRESSION:",
    ]
    alone = [i for part in parts for i in tokenizer(part)["input_ids"]]
    assert alone == tokenizer("".join(parts))["input_ids"]


def test_the_machine_allows_each_slot_once_and_then_the_end(tokenizer):
    machine = SlotMachine([["A:"], [" No emphysema.", " No pneumothorax."]], tokenizer)
    first = tokenizer("A:")["input_ids"]
    assert machine.allowed([]) == [first[0]]
    chosen = tokenizer("A: No pneumothorax.")["input_ids"]
    assert machine.allowed(chosen) == [tokenizer.eos_token_id]
    no = tokenizer(" No")["input_ids"][0]
    assert machine.allowed(first) == [no]
    assert len(machine.allowed([*first, no])) == 2


@pytest.mark.parametrize("beams", [1, 3])
def test_random_weights_write_one_of_the_legal_texts(model, beams):
    seen = _seen(model)
    slots = [["A:"], [" No emphysema.", " There is no emphysema."], [" End."]]
    text = write_text(model, seen.fused, seen.outputs, slots, num_beams=beams)
    assert text in ("A: No emphysema. End.", "A: There is no emphysema. End.")
    assert text == write_text(model, seen.fused, seen.outputs, slots, num_beams=beams)


def test_random_weights_cannot_invent_a_finding(model):
    for seed in range(8):
        findings = complete_findings(lesion.finding for lesion in make_phantom(seed).lesions)
        report = write(findings, _seen(model, seed), model, "CT of the chest.")
        assert check_report(report, ClinicalContext()) == ()
        stated = {code for s in report.impression for code in s.codes}
        assert stated == {f.code for f in findings if f.presence is Presence.PRESENT}


def test_the_wording_is_the_decoders_choice(model):
    """Raising the logit of one word changes the wording, and the statement stays."""
    seen, slots = _seen(model), [["A:"], [" No emphysema.", " There is no emphysema."]]
    (there,) = model.tokenizer(" There")["input_ids"]
    (no,) = model.tokenizer(" No")["input_ids"]
    written = []
    for preferred in (there, no):
        values = torch.zeros(model.config.vocab_size)
        values[preferred] = 100.0
        handle = model.decoder.lm.lm_head.register_forward_hook(lambda m, i, out, v=values: out + v)
        written.append(write_text(model, seen.fused, seen.outputs, slots))
        handle.remove()
    assert written == ["A: There is no emphysema.", "A: No emphysema."]
