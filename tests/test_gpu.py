"""On a GPU: what the CPU says, the same alone and among others, and trainings that learn. Skipped where none
is."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_world import batches_of, examples_in, small_model, write_corpus

import mla_med
from dapt.adapt import write_model
from dapt.batches import Wanted
from dapt.corpus import prepare_corpus
from dapt.images import Images
from dapt.loop import Loop, LoopConfig
from dapt.objectives.text import ReportText
from dapt.tokenizer import train_tokenizer
from dapt.train import pretrain
from dapt.train_config import TrainConfig
from evaluation.linter import random_findings
from mla_med.corpus import read_examples, read_settings
from mla_med.imaging.transforms import Preprocessing
from mla_med.model.checkpoint import load_checkpoint
from mla_med.model.config import tiny
from mla_med.model.generate import write_texts
from mla_med.model.mla import MLAModel
from mla_med.model.slots import report_slots
from mla_med.phantom.cohort import CohortConfig, make_cohort
from mla_med.report.render import body_text, render_report

DEVICE = "cuda"
EXAMINATIONS = ("chest_ct", "brain_mr")
CHECKPOINTS = Path(mla_med.__file__).parent / "checkpoints"

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.fixture(autouse=True)
def single_precision(monkeypatch):
    """Not the shortened one that convolutions would take by themselves."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


# The model


@pytest.fixture(scope="module", params=EXAMINATIONS)
def seen(request):
    """A packaged model, and four images of nobody on its grid with what is known of them."""
    model = load_checkpoint(CHECKPOINTS / request.param).model.float().eval()
    shape = (4, model.config.channels, *model.config.image_dim)
    coarse = torch.rand(4, shape[1], 8, 8, 8, generator=torch.Generator().manual_seed(0))
    image = torch.nn.functional.interpolate(coarse, shape[2:], mode="trilinear")
    present = torch.ones(shape[:2], dtype=torch.bool)
    if not model.config.preprocessing["windows_hu"]:
        present[1, 0] = present[2, 1:] = False
    return model, image, present, ["Age 61. Cough.", "", "Age 40. Fall.", "Headache."]


@torch.no_grad()
def logits_of(model, image, present, texts):
    return model.find(model.encode(image, texts, present)).presence_logits_BF.float().cpu()


def test_a_gpu_finds_what_the_cpu_finds(seen):
    model, image, present, texts = seen
    wanted = logits_of(model.cpu(), image, present, texts)
    assert wanted.std() > 0.1
    torch.testing.assert_close(
        logits_of(model.to(DEVICE), image, present, texts), wanted, atol=2e-3, rtol=1e-3
    )


@pytest.mark.parametrize("where", ["cpu", DEVICE])
def test_findings_are_the_same_alone_and_among_others(seen, where):
    model, image, present, texts = seen
    model = model.to(where)
    together = logits_of(model, image, present, texts)
    for row in range(4):
        one = slice(row, row + 1)
        alone = logits_of(model, image[one], present[one], texts[one])
        torch.testing.assert_close(alone[0], together[row], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("where", ["cpu", DEVICE])
def test_in_bfloat16_hardly_a_finding_changes(seen, where):
    model, image, present, texts = seen
    wanted = logits_of(model.to(where), image, present, texts)
    with torch.autocast(where, torch.bfloat16):
        half = logits_of(model, image, present, texts)
        alone = logits_of(model, image[:1], present[:1], texts[:1])
    sure = wanted.abs() > 0.5
    assert ((half > 0) == (wanted > 0))[sure].float().mean() > 0.98
    assert (half - wanted).abs().median() < 0.1
    torch.testing.assert_close(alone[0], half[0], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_gpu_writes_what_the_cpu_writes():
    torch.manual_seed(3)
    decoder = {"n_layer": 2, "n_embd": 32, "n_inner": 64, "n_head": 4, "n_positions": 768}
    model = MLAModel(tiny(vocab_size=1024, decoder=decoder)).eval()
    for parameter in model.decoder.parameters():
        parameter.mul_(4)
    findings = [random_findings("chest_ct", random.Random(seed)) for seed in range(5)]
    model.tokenizer = train_tokenizer([body_text(render_report(f)) for f in findings], vocab_size=1024)
    slots = [report_slots(f) for f in findings]
    images = torch.rand(5, 3, 32, 32, 32)
    written = []
    for where in ("cpu", DEVICE):
        model = model.to(where)
        fused = model.encode(images, [f"{30 + n} years" for n in range(5)])
        written.append([w.text for w in write_texts(model, fused, model.find(fused), slots)])
        (alone,) = write_texts(*_first(model, images), slots[:1])
        assert alone.text == written[-1][0]
    assert written[0] == written[1]


def _first(model, images):
    fused = model.encode(images[:1], ["30 years"])
    return model, fused, model.find(fused)


# Training on phantoms


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    cohort = make_cohort(CohortConfig(n=10, seed=3990, workers=2), tmp_path_factory.mktemp("cohort"))
    settings = Preprocessing(shape=(32, 24, 32), spacing_mm=12.0)
    return prepare_corpus(cohort, tmp_path_factory.mktemp("corpus"), settings, workers=1)


def test_images_on_a_gpu_are_those_on_disk(corpus):
    settings = read_settings(corpus)
    there, disk = Images(settings, DEVICE), Images(settings)
    where = (slice(2, 20), slice(0, 8), slice(5, 31))
    for example in read_examples(corpus, "train"):
        assert torch.equal(there.whole(example).cpu(), disk.whole(example))
        assert torch.equal(there.part(example, where).cpu(), disk.part(example, where))
        assert torch.equal(disk.part(example, where), disk.whole(example)[where])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_training_learns_on_a_gpu_and_goes_on_without(corpus, tmp_path, precision):
    steps = {"rounds": 2, "round_steps": 4, "round_patches": 4, "patches": 4, "patch": 24, "batch": 4}
    config = TrainConfig(**steps, epochs=12, precision=precision, device=DEVICE)
    sizes = {"n_layer": 1, "n_embd": 32, "n_inner": 64, "n_head": 4, "n_positions": 512}
    model_config = tiny(vocab_size=1024, decoder=sizes)
    model = pretrain(corpus, tmp_path, config, model_config)
    assert model.device.type == "cpu"
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    epochs = [row for row in rows if row["stage"] == "S3 report"]
    assert epochs[-1]["presence"] < 0.9 * epochs[0]["presence"]
    again = pretrain(corpus, tmp_path, replace(config, device="cpu"), model_config)
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    longer = pretrain(corpus, tmp_path, replace(config, device="cpu", epochs=13), model_config)
    assert all(p.isfinite().all() for p in longer.parameters())


# Adaptation


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("site") / "corpus")


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_stage_learns_on_a_gpu_and_goes_on_after_a_kill(site, tmp_path, precision):
    examples = examples_in(site)
    config = LoopConfig(steps=30, lr=3e-3, log_every=1, save_every=10, precision=precision)

    def loop_in(folder, stop=None):
        model = small_model(examples)
        batches = batches_of(examples, model, Wanted(images=False, findings=False), size=2, seed=1)

        def tell(row):
            if row.get("step") == stop:
                raise KeyboardInterrupt

        return Loop(model, ReportText(), config, tmp_path / folder, tell), batches

    loop, batches = loop_in("whole")
    assert loop.accelerator.device.type == DEVICE
    whole = loop.run(batches)
    rows = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    losses = [row["text"] for row in rows if "text" in row]
    assert losses[-1] < 0.8 * losses[0]
    loop, batches = loop_in("killed", stop=15)
    with pytest.raises(KeyboardInterrupt):
        loop.run(batches)
    loop, batches = loop_in("killed")
    resumed = loop.run(batches)
    for (name, one), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        torch.testing.assert_close(one.float(), other.float(), atol=1e-3, rtol=1e-2, msg=name)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_fsdp_on_one_gpu_learns_as_without(site, tmp_path, precision):
    """The whole command, with nccl and a world of one."""
    write_model(small_model(examples_in(site)), tmp_path / "start")
    rows = {}
    for name in ("plain", "fsdp"):
        (tmp_path / f"{name}.toml").write_text(
            f'out = "{tmp_path / name}"\n[model]\nstart = "{tmp_path / "start"}"\n'
            f'[corpora]\nsite = "{site}"\n[receipts]\nexamples = 4\ndrafts = 0\n'
            f'[[stage]]\nkind = "tapt"\nsteps = 4\nbatch = 4\naccumulate = 1\nprecision = "{precision}"\n'
        )
        rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
        rank |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517", "ACCELERATE_USE_FSDP": "true"}
        rank |= {
            "FSDP_VERSION": "2",
            "FSDP_AUTO_WRAP_POLICY": "NO_WRAP",
            "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
        }
        done = subprocess.run(
            [sys.executable, "-m", "mla_med.cli_adapt", str(tmp_path / f"{name}.toml")],
            env={**os.environ, **(rank if name == "fsdp" else {})},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        stage = tmp_path / name / "seed-0" / "adapted" / "1-tapt-site"
        rows[name] = [json.loads(line) for line in (stage / "log.jsonl").read_text().splitlines()]
    close = 1e-3 if precision == "no" else 2e-2
    assert rows["fsdp"][0]["text"] == pytest.approx(rows["plain"][0]["text"], rel=close)
    assert rows["fsdp"][-1]["validation loss"] == pytest.approx(
        rows["plain"][-1]["validation loss"], rel=close
    )
