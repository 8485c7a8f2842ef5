"""MAE from the command line: pre-trained, gone on with, probed, fine-tuned, looked at, its encoder taken out."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.flows.commands import Unveil, course, save_photo

QUICK = ("--global-batch-size", 4, "--workers", 0, "--set", "engine.trackers=", "--set", "engine.precision=fp32")


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    for number in range(20):
        save_photo(tmp_path / "photos" / "ab"[number % 2] / f"{number}.png", number)
    return tmp_path / "photos"


@pytest.mark.slow
def test_the_way_of_a_run(labelled: Path, tmp_path: Path, unveil: Unveil) -> None:
    run = tmp_path / "run"
    recipe = ("pretrain", labelled, "--recipe", "mae_tiny_cpu", *QUICK, "--steps", 4, "--checkpoint-every", 1)
    shown = unveil(*recipe, "--out", run, "--dry-run")
    assert "random, at most 48 of 64 patches hidden" in shown.out, shown.err
    assert unveil(*recipe, "--out", run).status == 0
    # A run that stopped after its third step ends as this one did, to the bit.
    shutil.copytree(run, tmp_path / "stopped")
    last = "checkpoints/step_00000004"
    shutil.rmtree(tmp_path / "stopped" / last)
    assert unveil(*recipe, "--out", tmp_path / "stopped").status == 0
    assert course(tmp_path / "stopped") == course(run)
    first, second = (load_file(out / last / "model.safetensors") for out in (run, tmp_path / "stopped"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)

    probed = unveil("probe", labelled, "--model", run, "--out", tmp_path / "probed", "--set", "pooling=cls")
    assert probed.status == 0 and "cls token, 32 numbers an image" in probed.out, probed.err
    tuning = ("finetune", "classification", labelled, "--init-from", run, "--out", tmp_path / "tuned")
    tuned = unveil(*tuning, *QUICK, "--steps", 2, "--set", "optimization.warmup_steps=0")
    assert tuned.status == 0, tuned.err
    assert "decoder (20 tensors)" in (tmp_path / "tuned" / "log.txt").read_text()
    positions = load_file(tmp_path / "tuned" / "checkpoints/step_00000002/model.safetensors")["backbone.pos_embed"]
    assert not torch.equal(positions, first["backbone.pos_embed"]), "a classifier learns its positions"
    embedded = unveil("embed", run, labelled, "--out", tmp_path / "x.npz")
    assert embedded.status == 0, embedded.err
    pictures = unveil("visualize", run, labelled, "--what", "similarity", "--out", tmp_path / "pictures")
    assert pictures.status == 0, pictures.err
    converted = unveil("convert", run, "--to", tmp_path / "timm.safetensors", "--format", "timm")
    assert converted.status == 0, converted.err
    taken = load_file(tmp_path / "timm.safetensors")
    assert torch.equal(taken["pos_embed"], first["backbone.pos_embed"])
    assert not any("decoder" in name or "mask_token" in name for name in taken)
