"""Runs of RevColV2: pre-trained, gone on with, fine-tuned, probed; and what other commands say of them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.flows.commands import save_photo
from unveil.build import find_machine, finetune, network_in, pretrain
from unveil.build.probing import frozen_features, load_columns_to_probe
from unveil.config import (
    ClassificationConfig,
    DataConfig,
    EngineConfig,
    MaskedRegression,
    OptimizationConfig,
    PixelTarget,
    PretrainConfig,
    ProbeConfig,
    RandomMasking,
    UnveilError,
    ViTConfig,
)
from unveil.config.resolve import resolve
from unveil.config.revcolv2 import revcolv2_small
from unveil.data.normalization import normalize
from unveil.data.sources.labelled import open_labelled
from unveil.data.sources.open import open_images
from unveil.engine import Parallel
from unveil.models.revcolv2 import RevColV2
from unveil.models.vit import ViT
from unveil.pretext.masked_pixels import MaskedPixels
from unveil.weights.load import load_backbone, read_backbone

CPU = Parallel(torch.device("cpu"))
MODEL = replace(revcolv2_small(widths=(8, 16, 16), head_width=8), mlp_ratio=2)
COMMON: dict[str, Any] = {
    "data": DataConfig(workers=0, normalization="imagenet"),
    "optimization": OptimizationConfig(global_batch_size=8, steps=2, warmup_steps=1),
    "engine": EngineConfig(precision="fp32", trackers=()),
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(16):
        save_photo(folder / "ab"[number % 2] / f"{number}.png", number)
    return folder


def pretraining(**changes: Any) -> PretrainConfig:
    config = PretrainConfig(
        recipe="tiny",
        model=MODEL,
        objective=MaskedRegression(loss="squared"),
        masking=RandomMasking(ratio=0.75),
        target=PixelTarget(normalized_side=4),
        **COMMON,
    )
    return resolve(replace(config, **changes), images=16, machine=find_machine(CPU))


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "first"
    task, _ = pretrain(pretraining(), open_images([str(photos)]), out=out, parallel=CPU)
    assert isinstance(task, MaskedPixels)
    return out


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_micro_batches_and_recomputation_change_no_step(photos: Path, run: Path, tmp_path: Path) -> None:
    source = open_images([str(photos)])
    optimization = replace(COMMON["optimization"], micro_batch_size=2)
    config = pretraining(optimization=optimization, model=replace(MODEL, reversible="off"))
    pretrain(config, source, out=tmp_path / "split", parallel=CPU)
    assert losses(tmp_path / "split") == pytest.approx(losses(run), rel=1e-5)
    (one, first), (_, second) = read_backbone(run), read_backbone(tmp_path / "split")
    assert one.name == "model.safetensors" and first.keys() == second.keys()
    assert all(torch.allclose(first[name], second[name], atol=1e-4) for name in first)


def test_fine_tuning_starts_from_the_columns_and_its_run_from_its_head(photos: Path, run: Path, tmp_path: Path) -> None:
    source, classes = open_labelled([str(photos)])
    model, normalization = network_in(run)
    assert (model, normalization) == (MODEL, "imagenet")
    config = ClassificationConfig(recipe="tiny", model=model, classes=classes, init_from=str(run), **COMMON)
    config = replace(config, ema_decay=0.9, optimization=replace(config.optimization, layer_decay=0.75))
    config = resolve(config, images=16, machine=find_machine(CPU))
    out = tmp_path / "tuned"
    task, outcome = finetune(config, source, out=out, parallel=CPU, validation=source)
    assert outcome.step == 2 and 0.0 <= outcome.metrics["validation_ema_accuracy"] <= 1.0
    assert isinstance(task.backbone, RevColV2) and task.backbone.reads == "top"
    log = (out / "log.txt").read_text()
    assert "our own run, RevColV2" in log and "mask token" in log and "predictor of masked pre-training" in log
    # What the last level does not depend on is as it was pre-trained.
    still = {name: value for name, value in task.named_parameters() if not value.requires_grad}
    before = read_backbone(run)[1]
    assert still and all(torch.equal(value, before[name]) for name, value in still.items())
    kept, _ = finetune(
        replace(config, init_from=str(out), head_from="keep", optimization=replace(config.optimization, steps=1)),
        source,
        parallel=CPU,
    )
    assert kept.classes == classes


def test_the_probe_reads_the_bottom_up_columns(run: Path) -> None:
    columns = load_columns_to_probe(run)
    assert columns is not None and columns.normalization == "imagenet"
    config = ProbeConfig(recipe="tiny", model=columns.backbone.config, pooling="mean", **COMMON)
    frozen = frozen_features(config, columns.backbone, None, CPU)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    whole = RevColV2(MODEL)
    state = read_backbone(run)[1]
    whole.load_state_dict({name: state[f"backbone.{name}"] for name in whole.state_dict()})
    with torch.no_grad():
        level = whole.eval()(normalize(images, "imagenet"), need=("bottom_up",)).bottom_up[8]
    torch.testing.assert_close(frozen(images), level.mean(dim=(2, 3)))
    file = load_columns_to_probe(read_backbone(run)[0])
    assert file is not None
    assert torch.equal(file.backbone(normalize(images, "imagenet")).patches.mean(dim=1), frozen(images))


def test_a_file_in_a_run_tells_its_network(run: Path) -> None:
    assert network_in(read_backbone(run)[0]) == (MODEL, "imagenet")


def test_a_vit_is_not_filled_with_columns(run: Path) -> None:
    with pytest.raises(UnveilError, match="the network is a RevColV2, and a ViT is wanted here"):
        load_backbone(ViT(ViTConfig(image_size=32, patch_size=8, width=16, depth=1, heads=2, mlp_width=16)), run)
