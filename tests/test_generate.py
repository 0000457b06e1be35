"""Constrained writing: nothing but the legal slots can be written, whatever the weights say."""

from __future__ import annotations

import random
from dataclasses import fields, replace
from itertools import product

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from dapt.tokenizer import train_tokenizer
from evaluation.adversarial import (
    adversaries,
    controls,
    judge,
    make_cases,
    random_writers,
    run,
    write_cases,
)
from evaluation.linter import random_findings
from mla_med.drafting import write
from mla_med.errors import ConfigError, ReportError
from mla_med.looking import Prepared, see
from mla_med.model import generate
from mla_med.model.config import tiny
from mla_med.model.generate import SlotMachine, report_slots, write_text, write_texts
from mla_med.model.mla import MLAModel
from mla_med.report.check import check_report
from mla_med.report.parse import parse_report
from mla_med.report.render import body_text, complete_findings, render_report
from mla_med.report.style import load_style, packaged_languages, packaged_styles
from mla_med.types import Change, ClinicalContext, Finding, Presence

TEXTS = [body_text(render_report(random_findings("chest_ct", random.Random(seed)))) for seed in range(60)]
STYLES = [(name, language) for language in packaged_languages() for name in packaged_styles(language)]


@pytest.fixture(autouse=True)
def one_thread():
    """On shared cores, threads of so small a model wait for each other most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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


@pytest.fixture(scope="module")
def writers():
    return random_writers()


def _seen(model, seed=0):
    image = torch.rand(3, 32, 32, 32, generator=torch.Generator().manual_seed(seed))
    return see(Prepared.whole(image, torch.eye(4)), "61 years, F, cough", model)


def _batch(model, cases, seed=0):
    """What `write_texts` wants for these cases."""
    images = torch.rand(len(cases), 3, 16, 16, 16, generator=torch.Generator().manual_seed(seed))
    fused = model.encode(images, ["cough"] * len(cases))
    return model, fused, model.find(fused), [case.slots() for case in cases]


def _brief(seed):
    """Two reports in each style of every language, each of four findings."""
    cases = [case for case in make_cases(48, random.Random(seed)) if case.examination == "brain_mr"]
    return [replace(case, findings=case.findings[:4], interpretations=()) for case in cases]


def _row(output, row):
    """One patient of a batch of outputs."""
    tensors = {f.name: getattr(output, f.name) for f in fields(output)}
    return replace(output, **{k: v[row : row + 1] for k, v in tensors.items() if torch.is_tensor(v)})


# The machine


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
    assert machine.allowed([]) == (first[0],)
    chosen = tokenizer("A: No pneumothorax.")["input_ids"]
    assert machine.allowed(chosen) == (tokenizer.eos_token_id,)
    no = tokenizer(" No")["input_ids"][0]
    assert machine.allowed(first) == (no,)
    assert len(machine.allowed([*first, no])) == 2
    assert machine.allowed([*first, tokenizer.eos_token_id]) == ()


def test_a_machine_goes_through_what_is_forced_up_to_the_next_choice(tokenizer):
    machine = SlotMachine([["A:"], [" No emphysema.", " No pneumothorax."], [" End."]], tokenizer)
    tokens, state = machine.forced(machine.start)
    assert tokens == tokenizer("A: No")["input_ids"]
    assert len(machine.next(state)) == 2


def test_a_wording_that_begins_another_is_refused(tokenizer):
    with pytest.raises(ReportError, match="'No nodule' is the beginning of another") as error:
        SlotMachine([["No nodule", "No nodule."]], tokenizer)
    assert error.value.code == "WORDING_AMBIGUOUS"


def test_a_report_that_the_decoder_has_no_places_for_is_refused(model):
    seen = _seen(model)
    with pytest.raises(ConfigError, match="has places for 384") as error:
        write_text(model, seen.fused, seen.outputs, [[" No emphysema."]] * 200)
    assert error.value.code == "REPORT_TOO_LONG"


# The slots of a report


@pytest.mark.parametrize(("name", "language"), STYLES)
def test_the_slots_of_a_report_are_its_text_in_the_preferred_wording(name, language):
    style = load_style(name, language)
    for examination, seed in product(style.examinations, range(3)):
        findings = random_findings(examination, random.Random(seed), prior=True)
        slots = report_slots(findings, style, examination, prior=True)
        assert "".join(slot[0] for slot in slots) == body_text(
            render_report(findings, style, examination), style
        )
        assert all(len(set(slot)) == len(slot) for slot in slots)


def test_the_slots_of_prose_are_cut_before_blanks_and_after_line_breaks():
    slots = report_slots([Finding("emphysema")], codes=["emphysema", "pneumothorax"])
    assert [slot[0] for slot in slots] == [
        "FINDINGS:",
        " There is emphysema, predominantly in the upper lobes.",
        " No pneumothorax.\n",
        "IMPRESSION:",
        " Emphysema.",
    ]


def test_without_a_prior_no_change_is_written():
    grown = Finding("pleural_effusion", side="right", change=Change.INCREASED)
    with pytest.raises(ReportError, match="no prior to compare with") as error:
        report_slots([grown])
    assert error.value.code == "CHANGE_WITHOUT_PRIOR"
    assert any("increased" in slot[0] for slot in report_slots([grown], prior=True))


def test_without_a_prior_a_phrase_that_compares_is_no_choice():
    style = load_style()
    wording = style.wording("chest_ct")
    phrases = {**wording.phrases["emphysema"], "absent": ("No emphysema.", "Emphysema unchanged, none.")}
    changed = replace(wording, phrases={**wording.phrases, "emphysema": phrases})
    style = replace(style, examinations={**style.examinations, "chest_ct": changed})
    with_prior, without = (
        report_slots([], style, codes=["emphysema"], prior=prior)[1] for prior in (True, False)
    )
    assert with_prior == (" No emphysema.\n", " Emphysema unchanged, none.\n")
    assert without == (" No emphysema.\n",)


# Writing


@pytest.mark.parametrize("beams", [1, 3])
def test_random_weights_write_one_of_the_legal_texts(model, beams):
    seen = _seen(model)
    slots = [["A:"], [" No emphysema.", " There is no emphysema."], [" End."]]
    text = write_text(model, seen.fused, seen.outputs, slots, num_beams=beams)
    assert text in ("A: No emphysema. End.", "A: There is no emphysema. End.")
    assert text == write_text(model, seen.fused, seen.outputs, slots, num_beams=beams)


def test_random_weights_cannot_invent_a_finding(model):
    for seed in range(4):
        drawn = random_findings("chest_ct", random.Random(seed))
        findings = complete_findings(f for f in drawn if f.presence is Presence.PRESENT)
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


def test_what_was_seen_may_choose_the_wording(writers):
    """The findings fix what is said; how it is said may follow the fused tokens."""
    model, fused, findings, slots = _batch(writers(1), _brief(1)[:4])
    model.decoder.lm.transformer.h[0].crossattention.c_proj.weight.data.mul_(1000)
    written = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        seen = replace(fused, tokens_BSD=torch.randn_like(fused.tokens_BSD))
        written.append([w.text for w in write_texts(model, seen, findings, slots)])
    assert written[0] != written[1]


def test_a_batch_is_written_token_for_token_as_its_patients_alone(writers):
    model, fused, findings, slots = _batch(writers(2), _brief(2))
    for beams in (1, 4):
        together = write_texts(model, fused, findings, slots, num_beams=beams)
        assert together == write_texts(model, fused, findings, slots, num_beams=beams)
        for row in (0, 3, 15):
            (alone,) = write_texts(
                model, _row(fused, row), _row(findings, row), slots[row : row + 1], num_beams=beams
            )
            assert alone.token_ids == together[row].token_ids


def test_going_from_choice_to_choice_writes_what_generate_writes(writers):
    for number in range(2):
        model, fused, findings, slots = _batch(writers(number), _brief(number))
        memory = dict(zip(("memory_BSE", "memory_mask_BS"), model.memory(fused, findings), strict=True))
        machines = [SlotMachine(some, model.tokenizer) for some in slots]
        with torch.no_grad():
            assert generate._choose(model, memory, machines) == generate._search(model, memory, machines, 1)


def test_beam_search_finds_texts_at_least_as_likely_and_as_legal(writers):
    better = 0
    for number in range(2):
        cases = _brief(number)
        batch = _batch(writers(number), cases)
        greedy, searched = (write_texts(*batch, num_beams=beams, score=True) for beams in (1, 4))
        for case, slots, one, beam in zip(cases, batch[3], greedy, searched, strict=True):
            assert beam.log_probability >= one.log_probability
            better += beam.log_probability > one.log_probability
            assert all(wording in slot for wording, slot in zip(beam.wordings, slots, strict=True))
            assert parse_report(beam.text, case.style, case.examination).findings == case.findings
    assert better > 0


def test_the_log_probability_of_each_sentence_is_the_decoders_own(model):
    seen, slots = _seen(model), [["A:"], [" No emphysema.", " There is no emphysema."]]
    (written,) = write_texts(model, seen.fused, seen.outputs, [slots], score=True)
    ids = torch.tensor([[model.config.bos_token_id, *written.token_ids]])
    memory, mask = model.memory(seen.fused, seen.outputs)
    logits = model(input_ids=ids, memory_BSE=memory, memory_mask_BS=mask).logits[0, :-1].log_softmax(-1)
    each = logits[torch.arange(ids.shape[1] - 1), ids[0, 1:]]
    first = len(model.tokenizer("A:")["input_ids"])
    expected = [float(part.detach().sum()) for part in (each[:first], each[first:-1], each[-1])]
    assert written.log_probabilities == pytest.approx(expected, abs=1e-4)


def test_a_tokenizer_that_joins_sentences_still_writes_every_text_exactly(model):
    """Its tokens cross blanks, stops and line breaks: alone and together, texts have other tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<pad>", "<s>", "</s>"], initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator(TEXTS[:20], trainer)
    greedy_merger = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")
    slots = report_slots([Finding("emphysema")], codes=["emphysema", "pneumothorax", "hiatal_hernia"])
    preferred = "".join(slot[0] for slot in slots)
    machine = SlotMachine([slot[:1] for slot in slots], greedy_merger)
    tokens, state = machine.forced(machine.start)
    assert machine.has_ended(state)
    assert tokens[:-1] != greedy_merger(preferred)["input_ids"]
    assert greedy_merger.decode(tokens[:-1]) == preferred


# Adversaries: in full by `python -m evaluation.adversarial`


def test_no_adversary_writes_what_the_findings_do_not_say(writers):
    tallies = run(96, writers, batch=12)
    assert sum(name.startswith("adversary") for name in tallies) == 7
    assert tallies["beams: 4"].drafts == 12
    assert [name for name, tally in tallies.items() if not tally.passed] == []
    assert tallies["all"].drafts == 96
    assert tallies["all"].without_prior == 48
    assert tallies["all"].sentences > 96 * 15


@pytest.mark.parametrize("name", sorted(adversaries(train_tokenizer(TEXTS[:1]), torch.Generator())))
def test_no_adversary_leads_beams_astray(writers, name):
    model = writers(0)
    cases = _brief(5)[::4]
    bend = adversaries(model.tokenizer, torch.Generator().manual_seed(0))[name]
    with torch.no_grad():
        written = write_cases(model, cases, bend, beams=4)
    verdicts = [judge(case, one.text) for case, one in zip(cases, written, strict=True)]
    assert all(v.read_back and v.ungrounded == v.comparisons == 0 for v in verdicts)


def test_the_checks_of_the_adversaries_can_fail(writers):
    unbound, swapped = controls(6, writers(0)).values()
    assert (unbound.read_back, unbound.endless) == (0, 6)
    assert swapped.read_back == 0
    assert swapped.ungrounded > 0
    assert swapped.comparisons > 0
