"""The loop: the same weights after a kill, the same gradients in two processes, and when it stops."""

from __future__ import annotations

import json
import multiprocessing
import socket
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from small_world import (
    GRID,
    batches_of,
    examples_in,
    gradients_of,
    gradients_of_rank,
    small_model,
    write_corpus,
)

from dapt.augment import Augment
from dapt.batches import Wanted, once
from dapt.loop import BEST, LOG, STATE, Loop, LoopConfig, TrainingError
from dapt.loop_bench import bench
from dapt.objectives.objective import Objective
from dapt.objectives.text import ReportText
from dapt.site import Stage
from dapt.stages import objective_of, wanted_of
from mla_med.errors import CheckpointError, ConfigError

SHORT = LoopConfig(steps=4, save_every=2, log_every=1, validate_every=2, lr=3e-3, device="cpu")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("world") / "corpus")


@pytest.fixture(scope="module")
def examples(corpus):
    return examples_in(corpus)


def _text_loop(examples, out, config=SHORT, tell=None, seed=0):
    model = small_model(examples, seed)
    batches = batches_of(examples, model, Wanted(images=False, findings=False), size=2, seed=1)
    return Loop(model, ReportText(), config, out, tell), batches


# Batches


def test_every_example_comes_once_before_any_comes_again(examples):
    model = small_model(examples)
    batches = batches_of(examples, model, Wanted(images=False), size=2)
    turns = [[batches(step).patient_B.tolist() for step in range(4 * t, 4 * t + 4)] for t in range(3)]
    for turn in turns:
        assert len({who for pair in turn for who in pair}) == 8
    assert turns[0] != turns[1]


def test_two_processes_see_together_what_one_with_the_double_batch_sees(examples):
    model = small_model(examples)
    wanted = Wanted(hidden=0.6, augment=Augment(shift=2))
    one = batches_of(examples, model, wanted, size=4)
    two = batches_of(examples, model, wanted, size=2)
    whole, halves = one(5), [two(5, rank=rank, world=2) for rank in (0, 1)]
    for name in ("image_ICIJK", "hidden_IIJK", "patient_B", "affine_I44"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(half, name) for half in halves]))


def test_batches_are_those_of_their_step_whatever_was_made_before(examples):
    model = small_model(examples)
    batches = batches_of(examples, model, Wanted(augment=Augment(shift=2)), size=3)
    streamed = dict(batches.stream(2, 5))
    assert list(streamed) == [2, 3, 4]
    assert torch.equal(streamed[4][0].image_ICIJK, batches(4).image_ICIJK)


# After a kill


class _Killed(BaseException):
    """Passes every `except Exception`."""


@pytest.mark.parametrize("kind", ["s1", "s2", "s3", "dapt", "tapt"])
def test_a_stage_that_was_killed_ends_with_the_weights_of_an_unbroken_one(kind, examples, tmp_path):
    stage = Stage(kind, queue=6, shift=1)
    drawn = {"fusion_type": "full", "modality_dropout": (0.0, 0.3)}  # with all that is drawn in a step

    def loop(out, tell=None):
        model = small_model(examples, **drawn)
        torch.manual_seed(5)
        made = Loop(model, objective_of(stage, model), SHORT, out, tell)
        wanted = wanted_of(stage)

        def held_out():
            return once(examples[:4], model.config, model.tokenizer, GRID, wanted, 2)

        return made, batches_of(examples, model, wanted, size=2, accumulate=2), held_out

    def kill(row):
        if row["step"] == 3:
            raise _Killed

    unbroken, batches, held_out = loop(tmp_path / "a")
    unbroken.run(batches, held_out)
    killed, batches, held_out = loop(tmp_path / "b", kill)
    with pytest.raises(_Killed):
        killed.run(batches, held_out)
    resumed, batches, held_out = loop(tmp_path / "b")
    assert resumed.progress.step == 2
    resumed.run(batches, held_out)
    for (name, a), b in zip(unbroken.whole().items(), resumed.whole().values(), strict=True):
        assert torch.equal(a, b), name
    rows = [[json.loads(x) for x in (tmp_path / f / LOG).read_text().splitlines()] for f in "ab"]
    timed = ("seconds", "tokens_per_s", "studies_per_s", "validation_s")
    once_more = [[{k: v for k, v in row.items() if k not in timed} for row in one] for one in rows]
    assert once_more[0] == once_more[1]


def test_a_state_holds_tensors_and_json_alone(examples, tmp_path):
    loop, batches = _text_loop(examples, tmp_path)
    loop.run(batches)
    files = {p.name for p in tmp_path.iterdir() if p.is_file()}
    assert files == {STATE, LOG}
    assert all(isinstance(value, torch.Tensor) for value in load_file(tmp_path / STATE).values())


def test_what_was_logged_after_the_last_state_is_cut_off(examples, tmp_path):
    loop, batches = _text_loop(examples, tmp_path, replace(SHORT, steps=2))
    loop.run(batches)
    with (tmp_path / LOG).open("a") as file:
        file.write('{"step": 3, "text": 1.0}\n{"step": 4, "te')
    _text_loop(examples, tmp_path, replace(SHORT, steps=2))
    assert [json.loads(line)["step"] for line in (tmp_path / LOG).read_text().splitlines()] == [1, 2]


def test_other_settings_do_not_go_on_with_a_state(examples, tmp_path):
    loop, batches = _text_loop(examples, tmp_path)
    loop.run(batches)
    with pytest.raises(CheckpointError, match="other settings"):
        _text_loop(examples, tmp_path, replace(SHORT, lr=1.0))
    _text_loop(examples, tmp_path, replace(SHORT, save_every=1))  # does not decide about the weights


# Gradients


def _same(ours, theirs):
    assert set(ours) == set(theirs)
    largest = max(float(g.abs().max()) for g in ours.values())
    for name, gradient in ours.items():
        assert torch.allclose(gradient, theirs[name], atol=1e-5 * largest, rtol=1e-4), name


def test_gradients_of_two_micro_batches_are_those_of_both_at_once(corpus, tmp_path):
    # the reports have different lengths: a mean of means would not do. Contrast sees one micro-batch at a
    # time, so only what it does not teach is compared
    whole, _, seen = gradients_of(corpus, tmp_path / "a", 4)
    parts, _, seen_too = gradients_of(corpus, tmp_path / "b", 2, accumulate=2)
    assert seen == seen_too
    decoder = [{k: v for k, v in one.items() if k.startswith("model.decoder.")} for one in (whole, parts)]
    _same(*decoder)


def test_gradients_of_two_processes_are_those_of_one_with_the_double_batch(corpus, tmp_path):
    whole, _, seen = gradients_of(corpus, tmp_path / "one", 4)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dapt.adapt"])
    ranks = [
        context.Process(target=gradients_of_rank, args=(rank, 2, port, corpus, tmp_path, 2))
        for rank in (0, 1)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(900)
    assert [process.exitcode for process in ranks] == [0, 0]
    both = [load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1)]
    for one in both:
        assert tuple(one.pop("seen").tolist()) == seen
        _same(whole, {name: one[name] for name in whole})  # DDP gives a gradient of 0 where there was none


# When it stops


def test_the_best_weights_are_kept_when_validation_stops_the_training(examples, tmp_path):
    numbers = iter([3.0, 2.0, 2.5, 2.6, 1.0])
    told = []
    config = replace(SHORT, steps=10, validate_every=1, stop_on="F1 lost", patience=2)
    loop, batches = _text_loop(examples, tmp_path, config, told.append)
    averages = {}

    def validate(model):
        averages[loop.progress.step] = {k: v.clone() for k, v in model.state_dict().items()}
        return {"F1 lost": next(numbers)}

    model = loop.run(batches, validate=validate)
    assert loop.progress.stopped
    assert (loop.progress.step, loop.progress.best_step, loop.progress.best) == (4, 2, 2.0)
    for name, value in model.state_dict().items():
        assert torch.equal(value, averages[2][name]), name
    again, batches = _text_loop(examples, tmp_path, config)
    again.run(batches)  # has ended: no further step, the same weights
    assert again.progress.step == 4
    assert torch.equal(again.whole()["model.project_text.weight"], model.project_text.weight)


def test_a_number_to_stop_on_that_is_not_measured_is_named(examples, tmp_path):
    loop, batches = _text_loop(examples, tmp_path, replace(SHORT, stop_on="F1", validate_every=1))
    with pytest.raises(ConfigError, match="No validation number 'F1' to stop on; there are: bleu"):
        loop.run(batches, validate=lambda model: {"bleu": 1.0})


class _Astray(Objective):
    def forward(self, model, batch):
        return {"text": model.project_text.weight.sum() * float("nan")}


def test_nothing_is_kept_of_a_training_that_went_astray(examples, tmp_path):
    model = small_model(examples)
    loop = Loop(model, _Astray(), replace(SHORT, save_every=1, log_every=4), tmp_path)
    with pytest.raises(TrainingError, match="no number any more at step 1"):
        loop.run(batches_of(examples, model, Wanted(images=False), size=2))
    assert not (tmp_path / STATE).exists()


def test_the_learning_rate_rises_then_falls_to_a_hundredth(examples, tmp_path):
    loop, _ = _text_loop(examples, tmp_path, replace(SHORT, steps=100, warmup=0.1, lr=1.0))
    rates = [loop.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == pytest.approx(1.0)
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[-1] == pytest.approx(0.01, abs=0.001)


def test_the_mean_of_the_weights_is_what_comes_out(examples, tmp_path):
    trained = {}

    def tell(row):
        if row["step"] == SHORT.steps:
            trained.update({k: v.clone() for k, v in loop.plain.model.state_dict().items()})

    loop, batches = _text_loop(examples, tmp_path, tell=tell)
    model = loop.run(batches)
    assert not model.training
    name = "decoder.lm.transformer.wte.weight"
    assert not torch.equal(model.state_dict()[name], trained[name])
    saved = load_file(tmp_path / STATE)
    assert torch.equal(saved[f"average/model.{name}"], model.state_dict()[name])
    assert torch.equal(saved[f"model/model.{name}"], trained[name])
    assert not (tmp_path / BEST).exists()


def test_training_leaves_the_callers_random_numbers_alone(examples, tmp_path):
    loop, batches = _text_loop(examples, tmp_path)
    torch.manual_seed(11)
    expected = torch.rand(1)
    torch.manual_seed(11)
    loop.run(batches)
    assert torch.equal(torch.rand(1), expected)


def test_a_bench_times_the_loop_beside_a_bare_one():
    numbers = bench(steps=2, size="tiny")
    assert numbers["loop_s"] > 0
    assert numbers["bare_s"] > 0
    assert numbers["overhead"] == pytest.approx(numbers["loop_s"] / numbers["bare_s"] - 1)
