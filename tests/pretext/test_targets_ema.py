"""The student's running average as its teacher: by hand, over steps, resumed, on two processes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.distributed.processes import together
from tests.flows.commands import save_photo
from unveil.build import find_machine, pretrain
from unveil.config import (
    EmaTarget,
    FeatureDistillation,
    ImageFiles,
    MaskedRegression,
    PretrainConfig,
    UnveilError,
    ViTConfig,
)
from unveil.config.resolve import resolve
from unveil.data.normalization import normalize
from unveil.data.sources.open import open_images
from unveil.engine import Parallel
from unveil.models.vit import ViT
from unveil.pretext.targets.base import SelectiveTarget, Target
from unveil.pretext.targets.ema import EmaTeacher
from unveil.recipes.small_data import tiny_cpu

TINY = ViTConfig(image_size=32, patch_size=8, width=24, depth=3, heads=2, mlp_width=48, init_std=0.1, drop_path=0.3)


def student(seed: int = 0) -> ViT:
    torch.manual_seed(seed)
    return ViT(TINY, mask_token=True)


def teacher_of(vit: ViT, **settings: Any) -> EmaTeacher:
    return EmaTeacher(vit, EmaTarget(**({"decay": 0.9, "layers": 2} | settings)), normalization="clip")


def test_features_by_hand() -> None:
    vit = student()
    teacher = teacher_of(vit)
    assert isinstance(teacher, Target) and (teacher.dim, teacher.grid, teacher.image_size) == (24, (4, 4), 32)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    tokens = vit.embed(normalize(images, "clip"))
    layers = []
    for block in vit.blocks:
        tokens = block(tokens)
        layers.append(tokens[:, 1:])

    def whitened(x: torch.Tensor) -> torch.Tensor:
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()

    expected = whitened((whitened(layers[1]) + whitened(layers[2])) / 2)
    torch.testing.assert_close(teacher(images), expected, atol=1e-5, rtol=1e-5)
    assert not teacher(images).requires_grad
    assert torch.equal(teacher.train()(images), teacher.eval()(images)), "no drop path in the teacher"


def test_some_patches_are_asked_for() -> None:
    teacher = teacher_of(student())
    assert isinstance(teacher, SelectiveTarget)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    patches = torch.tensor([[3, 15, 0, 0], [7, 2, 9, 0]])
    expected = torch.stack([row[numbers] for row, numbers in zip(teacher(images), patches, strict=True)])
    torch.testing.assert_close(teacher.at(images, patches), expected, atol=1e-5, rtol=1e-5)


def test_it_follows_by_its_rule_and_has_no_gradient() -> None:
    vit, other = student(), student(1)
    teacher = teacher_of(vit)
    before = {name: value.clone() for name, value in teacher.network.state_dict().items()}
    teacher.follow(other)
    wanted = dict(other.named_parameters())
    for name, value in teacher.network.named_parameters():
        torch.testing.assert_close(value, 0.9 * before[name] + 0.1 * wanted[name])
        assert not value.requires_grad
    teacher.copy_from(other)
    assert all(torch.equal(value, wanted[name]) for name, value in teacher.network.named_parameters())


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UnveilError, match="has 3 blocks"):
        teacher_of(student(), layers=4)
    with pytest.raises(UnveilError, match=r"target\.decay"):
        EmaTarget(decay=1.0)
    with pytest.raises(UnveilError, match="only MaskedRegression"):
        replace(tiny_cpu(), target=EmaTarget(layers=1), objective=FeatureDistillation())
    with pytest.raises(UnveilError, match="cannot be cached"):
        replace(tiny_cpu(), target=EmaTarget(layers=1), cache_targets=True)


def settings_of(photos: Path, **changes: Any) -> PretrainConfig:
    config = tiny_cpu()
    return replace(
        config,
        model=replace(config.model, drop_path=0.3),
        objective=MaskedRegression(loss="smooth_l1"),
        target=EmaTarget(decay=0.7, layers=2),
        data=replace(config.data, source=ImageFiles(paths=(str(photos),)), workers=0),
        optimization=replace(config.optimization, steps=6, warmup_steps=1, **changes),
        engine=replace(config.engine, precision="fp32", checkpoint_every=3, trackers=(), keep_last=9),
    )


class StopAfter:
    """A sink that pulls the plug."""

    def __init__(self, step: int) -> None:
        self.step = step

    def start(self, step: int, total: int) -> None:
        pass

    def write(self, step: int, metrics: dict[str, float]) -> None:
        if step > self.step:
            raise ConnectionError

    def close(self) -> None:
        pass


def run_of(photos: Path, out: Path, *, stop: int | None = None, **changes: Any) -> dict[str, torch.Tensor]:
    """All weights at the end, the teacher's included."""
    with Parallel.start("cpu") as parallel:
        source = open_images([str(photos)])
        config = resolve(settings_of(photos, **changes), images=len(source), machine=find_machine(parallel))
        watchers = () if stop is None else (StopAfter(stop),)
        task, outcome = pretrain(config, source, out=out, parallel=parallel, watchers=watchers)
        assert outcome.step == 6
        return {name: value.detach().clone() for name, value in task.state_dict().items()}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(16):
        save_photo(folder / f"{number}.png", number)
    return folder


def test_a_resumed_run_has_the_same_teacher_to_the_bit(photos: Path, tmp_path: Path) -> None:
    whole = run_of(photos, tmp_path / "whole")
    with pytest.raises(ConnectionError):
        run_of(photos, tmp_path / "broken", stop=4)
    resumed = run_of(photos, tmp_path / "broken")
    teacher = [name for name in whole if name.startswith("target.")]
    assert teacher and whole.keys() == resumed.keys()
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name
    moved = [
        name for name in teacher if not torch.equal(whole[name], whole[name.replace("target.network", "backbone")])
    ]
    assert moved, "the average lags behind"


def test_two_processes_equal_one(photos: Path, tmp_path: Path) -> None:
    alone = run_of(photos, tmp_path / "alone")
    first, second = together(2, run_of_two, photos, tmp_path / "two")
    for name, value in alone.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, atol=2e-5, rtol=1e-4, msg=lambda m, n=name: f"{n} {m}")


def run_of_two(photos: Path, out: Path) -> dict[str, torch.Tensor]:
    return run_of(photos, out, micro_batch_size=2)


@pytest.mark.parametrize("loss", ["cosine", "smooth_l1", "squared"])
def test_losses_of_masked_regression(loss: str) -> None:
    """By torch's own functions on the hidden patches alone."""
    from unveil.pretext.masked_modelling import MaskedModelling, pad_hidden

    torch.manual_seed(0)
    vit = student()
    objective = MaskedRegression(loss=loss, beta=0.7)
    task = MaskedModelling(vit, teacher_of(vit), seed=0, normalization="clip", objective=objective).eval()
    mask = torch.rand(2, 16) < 0.4
    hidden, weight = pad_hidden(mask, 12)
    images, targets = torch.randn(2, 3, 32, 32), torch.randn(2, 16, 24)
    wanted = torch.stack([row[numbers] for row, numbers in zip(targets, hidden, strict=True)])
    found = (task.regress(images, mask, hidden, wanted, None) * weight).sum() / weight.sum()
    answers, wanted = task.head(vit(images, mask).patches)[mask], targets[mask]
    expected = {
        "cosine": -F.cosine_similarity(answers, wanted).mean(),
        "smooth_l1": F.smooth_l1_loss(answers, wanted, beta=0.7),
        "squared": F.mse_loss(answers, wanted),
    }[loss]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
