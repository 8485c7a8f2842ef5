"""Runs that hide nothing, or whose teacher learns along: what is saved, and what other commands make of it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import unveil
from tests.flows.commands import save_photo
from unveil.build import find_machine, pretrain
from unveil.build.common import build_training_loader
from unveil.build.insight import load_masked_modelling
from unveil.config import (
    ClassificationConfig,
    EmaTarget,
    FeatureDistillation,
    HogTarget,
    ImageFiles,
    MaskedRegression,
    OptimizationConfig,
    PretrainConfig,
    UnveilError,
)
from unveil.config.resolve import resolve
from unveil.data.normalization import normalize
from unveil.data.sources.open import open_images
from unveil.engine import Parallel
from unveil.models.vit import ViT
from unveil.pretext.distillation import Distillation
from unveil.pretext.targets.ema import EmaTeacher
from unveil.recipes.small_data import tiny_cpu
from unveil.weights.infer import head_of
from unveil.weights.load import load_backbone, read_backbone

CPU = Parallel(torch.device("cpu"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(16):
        save_photo(folder / f"{number}.png", number)
    return folder


def config_of(photos: Path, **changes: object) -> PretrainConfig:
    config = tiny_cpu()
    return replace(
        config,
        data=replace(config.data, source=ImageFiles(paths=(str(photos),)), workers=0),
        optimization=replace(config.optimization, steps=2, warmup_steps=1),
        engine=replace(config.engine, precision="fp32", trackers=()),
        **changes,
    )


def test_a_distilled_network_is_saved_without_a_head_for_others(photos: Path, tmp_path: Path) -> None:
    base = config_of(photos)
    config = replace(
        base,
        objective=FeatureDistillation(),
        target=HogTarget(),
        model=replace(base.model, relative_positions="shared", layer_scale=0.1),
    )
    source = open_images([str(photos)])
    config = resolve(config, images=len(source), machine=find_machine(CPU))
    task, _ = pretrain(config, source, out=tmp_path / "run", parallel=CPU)
    assert isinstance(task, Distillation)
    _, state = read_backbone(tmp_path / "run")
    assert head_of(state) is None and "backbone.mask_token" not in state
    backbone = ViT(config.model)
    report = load_backbone(backbone, tmp_path / "run")
    assert report.left_out == {"predictor of distillation": ["predictor.bias", "predictor.weight"]}
    assert not report.unexpected and not report.missing
    model = unveil.load(tmp_path / "run", device="cpu")
    assert model.classifier is None
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    expected = task.eval().backbone(normalize(images, "clip")).patches
    torch.testing.assert_close(model.features(images).patches, expected.detach(), atol=1e-5, rtol=1e-5)
    with pytest.raises(UnveilError, match="FeatureDistillation"):
        load_masked_modelling(tmp_path / "run", config, stand_in=source, weights="ema", device=CPU.device)


def test_a_teacher_that_learns_along_is_saved_and_left_out(photos: Path, tmp_path: Path) -> None:
    config = config_of(photos, target=EmaTarget(decay=0.5, layers=1), objective=MaskedRegression(loss="smooth_l1"))
    source = open_images([str(photos)])
    config = resolve(config, images=len(source), machine=find_machine(CPU))
    task, _ = pretrain(config, source, out=tmp_path / "run", parallel=CPU)
    backbone = ViT(config.model)
    report = load_backbone(backbone, tmp_path / "run")
    assert not report.unexpected
    assert len(report.left_out["teacher that learned along"]) == len(task.target.state_dict())
    shown = load_masked_modelling(tmp_path / "run", config, stand_in=source, weights="ema", device=CPU.device)
    for name, value in shown.target.state_dict().items():
        assert torch.equal(value, task.target.state_dict()[name])


def test_the_teacher_begins_as_the_student_does(photos: Path, tmp_path: Path) -> None:
    """Also from given weights."""
    source = open_images([str(photos)])
    plain = resolve(config_of(photos, target=HogTarget()), images=16, machine=find_machine(CPU))
    first, _ = pretrain(plain, source, out=tmp_path / "first", parallel=CPU)
    config = config_of(photos, target=EmaTarget(decay=0.0, layers=2), init_from=str(tmp_path / "first"))
    frozen = replace(config, target=replace(config.target, decay=0.999999))
    task, _ = pretrain(
        resolve(frozen, images=16, machine=find_machine(CPU)), source, out=tmp_path / "second", parallel=CPU
    )
    assert isinstance(task.target, EmaTeacher)
    for name, value in first.backbone.state_dict().items():
        torch.testing.assert_close(task.target.network.state_dict()[name], value, atol=1e-5, rtol=1e-4)
    follows, _ = pretrain(
        resolve(config, images=16, machine=find_machine(CPU)), source, out=tmp_path / "third", parallel=CPU
    )
    for name, value in follows.backbone.named_parameters():
        torch.testing.assert_close(dict(follows.target.network.named_parameters())[name], value)


def test_crops_resized_on_the_device_make_a_run_of_nearly_the_same_losses(photos: Path, tmp_path: Path) -> None:
    """One process, where the device is the processor, too; validation goes the workers' way in both."""
    losses = []
    for place in ("workers", "device"):
        # PNGs, which the workers decode wherever JPEGs are decoded.
        base = config_of(photos, target=HogTarget())
        validation = ImageFiles(paths=(str(photos),))
        config = replace(base, data=replace(base.data, resize_on=place, decode_on=place, validation=validation))
        source = open_images([str(photos)])
        config = resolve(config, images=len(source), machine=find_machine(CPU))
        _, outcome = pretrain(config, source, out=tmp_path / place, parallel=CPU)
        losses.append((outcome.metrics["loss"], outcome.metrics["validation_loss"]))
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)


def test_classifiers_crops_are_resized_by_workers(photos: Path) -> None:
    optimization = OptimizationConfig(global_batch_size=2, steps=1)
    base = ClassificationConfig(recipe="x", model=tiny_cpu().model, classes=("a", "b"), optimization=optimization)
    with pytest.raises(UnveilError, match=r"data\.resize_on=device is for pre-training only"):
        build_training_loader(
            replace(base, data=replace(base.data, resize_on="device")),
            open_images([str(photos)]),
            lambda sample, rng: {},
            lambda views: {},
            CPU,
        )
