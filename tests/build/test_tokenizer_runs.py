"""Runs that train a tokeniser, and runs that predict its codes: resumed, on two processes, handed on."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import unveil
from tests.distributed.processes import together
from tests.flows.commands import course, metrics, save_photo
from unveil.build import find_machine, pretrain
from unveil.build.insight import load_masked_modelling
from unveil.config import (
    DataConfig,
    ImageFiles,
    MaskedTokenPrediction,
    PatchAggregation,
    PixelTarget,
    PretrainConfig,
    UnveilError,
    VectorQuantizedDistillation,
    ViTConfig,
)
from unveil.config.resolve import resolve
from unveil.data.sources.open import open_images
from unveil.engine import Parallel
from unveil.models.vit import ViT
from unveil.recipes.small_data import tiny_cpu
from unveil.weights.load import load_backbone

CPU = Parallel(torch.device("cpu"))
STEPS = 6
MODEL = ViTConfig(image_size=16, patch_size=4, width=24, depth=2, heads=2, mlp_width=48, init_std=0.2, drop_path=0.2)
TOKENIZER = VectorQuantizedDistillation(codes=30, code_dim=6, decoder_depth=1, codebook_decay=0.9)


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


def config_of(photos: Path, **changes: Any) -> PretrainConfig:
    config = tiny_cpu()
    changed = replace(
        config,
        model=MODEL,
        objective=TOKENIZER,
        target=PixelTarget(),
        data=DataConfig(source=ImageFiles(paths=(str(photos),)), workers=0),
        optimization=replace(config.optimization, steps=STEPS, warmup_steps=1),
        engine=replace(config.engine, precision="fp32", checkpoint_every=2, trackers=()),
    )
    return replace(changed, **changes)


def run(config: PretrainConfig, out: Path, *, stop: int | None = None, parallel: Parallel = CPU) -> Any:
    source = open_images(config.data.source.paths)
    resolved = resolve(config, images=len(source), machine=find_machine(parallel))
    watchers = () if stop is None else (StopAfter(stop),)
    task, _ = pretrain(resolved, source, out=out, parallel=parallel, watchers=watchers)
    return task


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(16):
        save_photo(folder / f"{number}.png", number)
    return folder


@pytest.fixture(scope="module")
def tokenizer(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run; the tests must not change it."""
    out = tmp_path_factory.mktemp("tokenizer") / "run"
    held_out = replace(config_of(photos).data, validation=ImageFiles(paths=(str(photos),)))
    run(config_of(photos, data=held_out), out)
    return out


def same_state(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_use_of_the_codebook_is_logged_in_training_and_validation(tokenizer: Path) -> None:
    lines = metrics(tokenizer)
    assert lines[0]["codebook_revived"] == 30, "all codes come from the first batch"
    for line in lines:
        assert 1 / 30 <= line["codebook_use"] <= 1.0 and 0.0 < line["codebook_perplexity"] <= line["codebook_use"]
        assert line["loss"] == pytest.approx(line["reconstruction"] + line["commitment"], abs=1e-6)
    assert 1 / 30 <= lines[-1]["validation_codebook_use"] <= 1.0
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_a_tokeniser_that_was_stopped_goes_on_to_the_bit(photos: Path, tmp_path: Path) -> None:
    config = config_of(photos)
    whole = run(config, tmp_path / "whole")
    with pytest.raises(ConnectionError):
        run(config, tmp_path / "broken", stop=4)
    resumed = run(config, tmp_path / "broken")
    assert same_state(whole.state_dict(), resumed.state_dict())
    assert {"codebook.codes", "codebook.usage"} <= whole.state_dict().keys()
    assert course(tmp_path / "whole") == course(tmp_path / "broken")
    for one, other in zip(metrics(tmp_path / "whole"), metrics(tmp_path / "broken"), strict=True):
        assert {**one, "images_per_second": 0} == {**other, "images_per_second": 0}


def run_here(photos: Path, out: Path, micro_batch_size: int) -> dict[str, Tensor]:
    with Parallel.start("cpu") as parallel:
        config = config_of(photos)
        config = replace(config, optimization=replace(config.optimization, micro_batch_size=micro_batch_size))
        return {name: value.clone() for name, value in run(config, out, parallel=parallel).state_dict().items()}


def test_two_processes_and_micro_batches_equal_one_process(photos: Path, tmp_path: Path) -> None:
    alone = run_here(photos, tmp_path / "alone", 8)
    first, second = together(2, run_here, photos, tmp_path / "two", 2)
    assert same_state(first, second)
    for name, value in alone.items():
        torch.testing.assert_close(first[name], value, atol=2e-5, rtol=1e-4, msg=lambda m, n=name: f"{n} {m}")
    for one, other in zip(metrics(tmp_path / "alone"), metrics(tmp_path / "two"), strict=True):
        names = ("loss", "commitment", "codebook_use", "codebook_perplexity", "codebook_revived")
        assert [other[name] for name in names] == pytest.approx([one[name] for name in names], abs=1e-5)


def predicting(photos: Path, tokenizer: Path) -> PretrainConfig:
    objective = MaskedTokenPrediction(tokenizer=str(tokenizer), aggregation=PatchAggregation(after_block=1, depth=1))
    return config_of(photos, objective=objective)


def test_prediction_of_codes_learns_goes_on_to_the_bit_and_is_handed_on(
    photos: Path, tokenizer: Path, tmp_path: Path
) -> None:
    config = predicting(photos, tokenizer)
    whole = run(config, tmp_path / "whole")
    with pytest.raises(ConnectionError):
        run(config, tmp_path / "broken", stop=4)
    # The tokeniser may move.
    shutil.copytree(tokenizer, tmp_path / "moved")
    resumed = run(predicting(photos, tmp_path / "moved"), tmp_path / "broken")
    assert same_state(whole.state_dict(), resumed.state_dict())
    assert course(tmp_path / "whole") == course(tmp_path / "broken")
    lines = metrics(tmp_path / "whole")
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert all(0.0 <= line["code_accuracy"] <= 1.0 for line in lines)

    backbone = ViT(config.model)
    report = load_backbone(backbone, tmp_path / "whole")
    assert not report.missing and not report.unexpected
    assert report.left_out.keys() == {"mask token", "predictor of masked pre-training"}
    assert same_state(
        backbone.state_dict(), {n: v for n, v in whole.backbone.state_dict().items() if n != "mask_token"}
    )
    assert unveil.load(tmp_path / "whole", device="cpu").classifier is None
    with pytest.raises(UnveilError, match="MaskedTokenPrediction, which predicts no features"):
        load_masked_modelling(
            tmp_path / "whole", config, stand_in=open_images([str(photos)]), weights="raw", device=CPU.device
        )


def test_a_tokeniser_s_encoder_is_handed_on_without_the_rest(tokenizer: Path) -> None:
    report = load_backbone(ViT(MODEL), tokenizer)
    assert not report.missing and not report.unexpected
    assert report.left_out.keys() == {"codebook and decoder of a tokeniser"}
    assert unveil.load(tokenizer, device="cpu").classifier is None


def test_another_tokeniser_under_the_same_name_is_refused(photos: Path, tokenizer: Path, tmp_path: Path) -> None:
    shutil.copytree(tokenizer, tmp_path / "tokenizer")
    config = predicting(photos, tmp_path / "tokenizer")
    with pytest.raises(ConnectionError):
        run(config, tmp_path / "run", stop=4)
    shutil.rmtree(tmp_path / "tokenizer")
    run(replace(config_of(photos), engine=replace(config_of(photos).engine, seed=1)), tmp_path / "tokenizer")
    with pytest.raises(UnveilError, match="has changed since the run began"):
        run(config, tmp_path / "run")


def test_what_cannot_be_leaves_no_run_behind(photos: Path, tokenizer: Path, tmp_path: Path) -> None:
    config = predicting(photos, tokenizer)
    with pytest.raises(UnveilError, match="no tokeniser at"):
        run(replace(config, objective=MaskedTokenPrediction(tokenizer=str(tmp_path / "none"))), tmp_path / "run")
    with pytest.raises(UnveilError, match="cannot be cached"):
        replace(config, cache_targets=True)
    assert not (tmp_path / "run").exists()
    assert json.loads((tokenizer / "config.json").read_text())["objective"]["kind"] == "VectorQuantizedDistillation"
