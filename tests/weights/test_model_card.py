"""The model card says what the run's files say, and whose weights these weights come from."""

import json
from pathlib import Path
from typing import Any

import pytest

from unveil.config import (
    ClipTarget,
    EmaTarget,
    HogTarget,
    MaskedTokenPrediction,
    OptimizationConfig,
    PatchAggregation,
    PixelTarget,
    PretrainConfig,
    UnveilError,
    VectorQuantizedDistillation,
    ViTConfig,
)
from unveil.config.serialize import to_json
from unveil.weights.model_card import model_card

SAID = {"title": "mine", "what": "A network.", "loading": "Like this.", "checked": "Compared."}


def run(folder: Path, **settings: Any) -> Path:
    config = PretrainConfig(
        recipe="tiny",
        model=ViTConfig(image_size=28, patch_size=7, width=48, depth=2, heads=4, mlp_width=96),
        optimization=OptimizationConfig(steps=1200, global_batch_size=64),
        **settings,
    )
    (folder / "checkpoints" / "step_00001200").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(to_json(config)))
    return folder


def test_teachers_and_starting_weights_of_every_stage(tmp_path: Path) -> None:
    first = run(tmp_path / "first", target=ClipTarget(), init_from="/weights/eva_psz14.pt")
    second = run(tmp_path / "second", target=PixelTarget(), init_from=str(first))
    card = model_card(second, **SAID)
    licence = card.partition("## Licence")[2]
    assert f"- started from `{first}`\n" in licence
    assert f"teacher `ViT-L-14/openai` (OpenAI's CLIP: MIT) (by way of `{first}`)" in licence
    assert f"started from `/weights/eva_psz14.pt` (EVA (BAAI): MIT) (by way of `{first}`)" in licence
    assert "| steps | 1,200 of 64 images |" in card and "Pixel" in card and "Compared." in card
    assert "Nothing is known about the data." in card and "The run wrote none." in card


def test_a_tokeniser_s_teacher_is_told_of_the_network_that_predicts_its_codes(tmp_path: Path) -> None:
    tokenizer = run(tmp_path / "vqkd", target=ClipTarget(), objective=VectorQuantizedDistillation())
    objective = MaskedTokenPrediction(tokenizer=str(tokenizer), aggregation=PatchAggregation())
    card = model_card(run(tmp_path / "tokens", objective=objective), **SAID)
    licence = card.partition("## Licence")[2]
    assert f"- trained to predict the codes of the tokeniser `{tokenizer}`\n" in licence
    assert f"teacher `ViT-L-14/openai` (OpenAI's CLIP: MIT) (by way of `{tokenizer}`)" in licence
    assert "embedded" not in card and "| teacher |" not in card
    assert "aggregation=PatchAggregation(after_block=9, depth=2))" in card and "| masking | BlockMasking(" in card
    assert "| masking |" not in model_card(tokenizer, **SAID)


@pytest.mark.parametrize("target", [HogTarget(), EmaTarget()])
def test_targets_without_weights_of_others(tmp_path: Path, target: HogTarget | EmaTarget) -> None:
    assert "trained from random numbers" in model_card(run(tmp_path / "run", target=target), **SAID)


def test_from_scratch_and_from_a_file_of_a_run(tmp_path: Path) -> None:
    folder = run(tmp_path / "first", target=PixelTarget())
    assert "trained from random numbers" in model_card(folder, **SAID)
    file = folder / "checkpoints" / "step_00001200" / "model.safetensors"
    assert model_card(file, **SAID) == model_card(folder, **SAID)
    stranger = model_card(tmp_path / "somewhere" / "eva.pt", **SAID)
    assert "The file `eva.pt`." in stranger and "## Recipe" not in stranger


def test_long_lists_are_cut(tmp_path: Path) -> None:
    folder = run(tmp_path / "first")
    parts = {f"/data/{number}": {"count": 1000, "sha256": "a"} for number in range(1000)}
    (folder / "data.json").write_text(json.dumps({"order": "x", "parts": parts}))
    card = model_card(folder, **SAID)
    assert "1,000,000 samples." in card and "And 980 parts more" in card and len(card.splitlines()) < 80


def test_damaged_files(tmp_path: Path) -> None:
    folder = run(tmp_path / "first")
    (folder / "data.json").write_text("{")
    with pytest.raises(UnveilError, match=r"data\.json cannot be read"):
        model_card(folder, **SAID)
