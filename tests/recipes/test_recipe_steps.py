"""Every recipe trains two steps on generated images; only width, depth and batch are made small."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from unveil.build import build_source, find_machine, finetune, pretrain, probe
from unveil.build.probing import frozen_features
from unveil.config import (
    BackboneConfig,
    ClassificationConfig,
    ClipTarget,
    EmaTarget,
    FashionScenes,
    ImageFiles,
    MaskedAutoencoding,
    MaskedTokenPrediction,
    OptimizationConfig,
    PixelTarget,
    PretrainConfig,
    ProbeConfig,
    RevColV2Config,
    VectorQuantizedDistillation,
    ViTConfig,
)
from unveil.config.pretext import Objective
from unveil.config.resolve import resolve
from unveil.data.sources.base import Source
from unveil.data.sources.labelled import open_labelled
from unveil.data.sources.subset import SubsetSource
from unveil.engine import Parallel, RunFolder
from unveil.models.backbone import probed_backbone
from unveil.models.vit import ViT
from unveil.recipes import CLASSIFICATION, PRETRAINING, PROBES
from unveil.recipes.quickstart import quickstart_columns_pretraining, quickstart_pretraining
from unveil.weights.openai_clip import openai_from_tower

IMAGES = 16
CODES = 40


def write_images(folder: Path, numbers: range = range(IMAGES)) -> None:
    folder.mkdir(parents=True)
    waves = torch.linspace(0, 6.28, 60)
    for number in numbers:
        rows, columns = torch.sin(waves * (1 + number % 4))[:, None], torch.cos(waves * (1 + number // 4))[None, :]
        pixels = torch.stack([rows.expand(60, 60), columns.expand(60, 60), rows * columns], dim=2)
        Image.fromarray(((pixels + 1) * 127).to(torch.uint8).numpy()).save(folder / f"{number}.jpg")


def write_clip(file: Path, patch_size: int) -> None:
    """A tiny CLIP with random weights, as OpenAI lays it out."""
    torch.manual_seed(0)
    tower = ViT(
        ViTConfig(
            image_size=224,
            patch_size=patch_size,
            width=64,
            depth=1,
            heads=1,
            mlp_width=64,
            qkv_bias="all",
            activation="quick_gelu",
            norm_epsilon=1e-5,
            patch_bias=False,
            norm_before_blocks=True,
        )
    )
    state = openai_from_tower(tower.state_dict(), torch.randn(64, 24), prefix="visual.")
    torch.save(state | {"input_resolution": torch.tensor(224)}, file)


def small(config: PretrainConfig, tmp_path: Path) -> PretrainConfig:
    target, source = config.target, config.data.source
    if isinstance(target, EmaTarget):
        target = replace(target, layers=2)
    if isinstance(target, ClipTarget):
        write_clip(tmp_path / "clip.pt", config.model.patch_size)
        target = replace(target, name=str(tmp_path / "clip.pt"))
    if isinstance(source, FashionScenes):
        source = replace(source, count=IMAGES)
    else:
        write_images(tmp_path / "images")
        source = ImageFiles(paths=(str(tmp_path / "images"),))
    return replace(
        config,
        model=small_model(config.model),
        objective=small_objective(config.objective, tmp_path),
        target=target,
        data=replace(config.data, source=source),
        optimization=two_steps(config.optimization),
    )


def small_objective(objective: Objective, tmp_path: Path) -> Objective:
    match objective:
        case VectorQuantizedDistillation():
            return replace(objective, codes=CODES)
        case MaskedTokenPrediction():
            second = objective.aggregation and replace(objective.aggregation, after_block=1)
            return replace(objective, tokenizer=str(tmp_path / "tokenizer"), aggregation=second)
        case MaskedAutoencoding():
            return replace(objective, decoder_width=32, decoder_depth=1, decoder_heads=2)
        case _:
            return objective


def train_tokenizer(config: PretrainConfig, source: Source, out: Path, parallel: Parallel) -> None:
    """One for the patches of `config`."""
    objective = VectorQuantizedDistillation(codes=CODES, decoder_depth=1)
    config = replace(config, recipe="tokenizer", objective=objective, target=PixelTarget())
    pretrain(resolve(config, images=len(source), machine=find_machine(parallel)), source, out=out, parallel=parallel)


def small_model(model: BackboneConfig) -> BackboneConfig:
    if isinstance(model, RevColV2Config):
        levels = len(model.widths)
        columns = {"bottom_up_columns": 1, "top_down_columns": 1}
        return replace(model, widths=(8, 8, 16, 16)[:levels], layers=(1,) * levels, head_width=8, **columns)
    return replace(model, width=32, depth=2, heads=2, mlp_width=64)


def two_steps(optimization: OptimizationConfig) -> OptimizationConfig:
    return replace(optimization, global_batch_size=4, micro_batch_size=2, steps=2, epochs=None)


QUICKSTARTS = (quickstart_pretraining, quickstart_columns_pretraining)


@pytest.mark.parametrize("recipe", [*PRETRAINING, *QUICKSTARTS], ids=lambda recipe: recipe.__name__)
def test_two_steps(recipe: Callable[[], PretrainConfig], tmp_path: Path) -> None:
    parallel = Parallel(torch.device("cpu"))
    config = small(recipe(), tmp_path)
    source = build_source(config.data.source)
    assert len(source) == IMAGES
    if isinstance(config.objective, MaskedTokenPrediction):
        train_tokenizer(config, source, tmp_path / "tokenizer", parallel)
    config = resolve(config, images=len(source), machine=find_machine(parallel))
    task, outcome = pretrain(config, source, out=tmp_path / "run", parallel=parallel)
    assert (outcome.step, outcome.stopped) == (2, False)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    # Cosines; a cosine's distance with a squared length below 4 / 32 beside it; two guesses among so many codes.
    most = {VectorQuantizedDistillation: 2.2, MaskedTokenPrediction: 2.2 * math.log(CODES)}.get(
        type(config.objective), 1
    )
    if isinstance(config.target, PixelTarget):
        # The variance of normalised pixels, and the square of what a new network says: of MAE's, whose last layer
        # begins with Xavier's deviation, at most twice the variance.
        most = 3.0 if isinstance(config.objective, MaskedAutoencoding) else 1.2
    assert rows[-1]["step"] == 2 and all(math.isfinite(row["loss"]) and abs(row["loss"]) <= most for row in rows)
    assert all(parameter.isfinite().all() for parameter in task.parameters())


def labelled_images(folder: Path) -> tuple[Source, tuple[str, ...]]:
    for name, numbers in (("striped", range(8)), ("checked", range(8, IMAGES))):
        write_images(folder / name, numbers)
    source, classes = open_labelled([str(folder)])
    assert (len(source), sorted(classes)) == (IMAGES, ["checked", "striped"])
    return source, classes


@pytest.mark.parametrize("recipe", CLASSIFICATION, ids=lambda recipe: recipe.__name__)
def test_two_steps_of_fine_tuning(recipe: Callable[[], ClassificationConfig], tmp_path: Path) -> None:
    parallel = Parallel(torch.device("cpu"))
    source, classes = labelled_images(tmp_path / "images")
    config = recipe()
    config = replace(
        config,
        classes=classes,
        model=small_model(config.model),
        data=replace(config.data, workers=0),
        optimization=two_steps(config.optimization),
    )
    config = resolve(config, images=len(source), machine=find_machine(parallel))
    task, outcome = finetune(
        config, source, out=tmp_path / "run", parallel=parallel, validation=SubsetSource(source, [0, 9])
    )
    assert (outcome.step, outcome.stopped) == (2, False)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    # A head that begins near 0 says one half of each of two classes: ln 2.
    assert rows[-1]["step"] == 2
    assert all(row["loss"] == pytest.approx(math.log(2), abs=0.05) for row in rows)
    assert 0.0 <= rows[-1]["validation_accuracy"] <= 1.0
    assert ("validation_ema_accuracy" in rows[-1]) == (config.ema_decay is not None)
    saved = RunFolder(tmp_path / "run").checkpoints.load_latest()
    assert saved is not None
    assert (saved.averaged is None) == (config.ema_decay is None)
    assert all(parameter.isfinite().all() for parameter in task.parameters())


@pytest.mark.parametrize("recipe", PROBES, ids=lambda recipe: recipe.__name__)
def test_two_steps_of_probing(recipe: Callable[[], ProbeConfig], tmp_path: Path) -> None:
    """Of a network for the recipe's patches, made for 16 of them a side."""
    parallel = Parallel(torch.device("cpu"))
    source, classes = labelled_images(tmp_path / "images")
    config = recipe()
    config = replace(
        config,
        classes=classes,
        model=small_model(config.model),
        data=replace(config.data, workers=0),
        optimization=two_steps(config.optimization),
    )
    config = resolve(config, images=len(source), machine=find_machine(parallel))
    torch.manual_seed(0)
    network = probed_backbone(replace(config.model, image_size=16 * config.model.mask_unit))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    frozen = frozen_features(config, network, None, parallel)
    outcome = probe(
        config,
        frozen,
        source,
        SubsetSource(source, [0, 9]),
        methods=("linear",),
        out=tmp_path / "run",
        parallel=parallel,
    )
    assert not outcome.stopped
    rows = [json.loads(line) for line in (tmp_path / "run" / "linear" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 2
    assert all(math.isfinite(row["loss"]) for row in rows)
    assert 0.0 <= outcome.report["methods"]["linear"]["top1"] <= 1.0
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
