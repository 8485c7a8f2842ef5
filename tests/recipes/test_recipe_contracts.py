"""Recipes say what they promise, and do not change unnoticed.

golden/<name>.json is what each recipe returned when it was last looked at. After a change that is meant:
`UNVEIL_REWRITE_GOLDEN=1 uv run pytest tests/recipes/test_recipe_contracts.py`, and the difference is read in the diff.
"""

import inspect
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from unveil.config import ClipTarget
from unveil.config.serialize import from_json, to_json
from unveil.recipes import (
    CLASSIFICATION,
    CONTRASTIVE,
    PRETRAINING,
    PROBES,
    choose_classification,
    choose_contrastive,
    choose_pretraining,
)
from unveil.recipes.quickstart import (
    quickstart,
    quickstart_columns,
    quickstart_columns_pretraining,
    quickstart_pretraining,
)

GOLDEN = Path(__file__).parent / "golden"
LISTED = [*PRETRAINING, *CLASSIFICATION, *PROBES, *CONTRASTIVE]
RECIPES = [*LISTED, quickstart_pretraining, quickstart, quickstart_columns_pretraining, quickstart_columns]
each = pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.__name__)
each_listed = pytest.mark.parametrize("recipe", LISTED, ids=lambda recipe: recipe.__name__)


@each
def test_golden(recipe: Callable[[], Any]) -> None:
    file = GOLDEN / f"{recipe.__name__}.json"
    returned = to_json(recipe())
    if os.environ.get("UNVEIL_REWRITE_GOLDEN"):
        file.write_text(json.dumps(returned, indent=2) + "\n")
    assert json.loads(file.read_text()) == returned


def test_no_golden_file_is_left_over() -> None:
    assert {file.stem for file in GOLDEN.iterdir()} == {recipe.__name__ for recipe in RECIPES}


@each
def test_docstring(recipe: Callable[[], Any]) -> None:
    text = inspect.getdoc(recipe) or ""
    assert "Hardware:" in text and "Expected" in text
    assert text.splitlines()[0].endswith((".", "?")), "unveil recipes shows the first line alone"


@each_listed
def test_a_recipe_is_called_what_it_says(recipe: Callable[[], Any]) -> None:
    config = recipe()
    assert config.recipe == recipe.__name__
    assert from_json(type(config), to_json(config)) == config
    assert config.init_from is None


def test_no_two_recipes_have_one_name() -> None:
    assert len({recipe.__name__ for recipe in LISTED}) == len(LISTED)


@pytest.mark.parametrize("recipe", [*CLASSIFICATION, *PROBES], ids=lambda recipe: recipe.__name__)
def test_a_classification_recipe_says_what_it_starts_from(recipe: Callable[[], Any]) -> None:
    """In its contract, which is all that a person sees who has to give --init-from."""
    text = " ".join((inspect.getdoc(recipe) or "").split())
    stages = {other.__name__ for other in LISTED} | {"EVA-CLIP g/14", "CLIP ViT-B/16", "scratch"}
    assert any(f"From {stage}{end}" in text for stage in stages for end in ".,"), text


@pytest.mark.parametrize("recipe", PRETRAINING, ids=lambda recipe: recipe.__name__)
def test_a_clip_teacher_s_patches_are_the_student_s(recipe: Callable[[], Any]) -> None:
    config = recipe()
    if isinstance(config.target, ClipTarget):
        assert f"-{config.model.patch_size}/" in config.target.name and config.model.image_size == 224


def test_eva_is_the_paper_s_table_3() -> None:
    """Columns c and d, and what the released command adds."""
    config = next(recipe() for recipe in PRETRAINING if recipe.__name__ == "eva_giant")
    optimization, optimizer = config.optimization, config.optimization.optimizer
    assert (optimization.global_batch_size, optimization.epochs, optimization.warmup_epochs) == (4096, 150, 2)
    assert (optimizer.learning_rate, optimizer.betas, optimizer.weight_decay) == (1e-3, (0.9, 0.98), 0.05)
    assert (optimizer.epsilon, optimization.min_learning_rate, optimization.clip_gradient_norm) == (1e-6, 1e-5, 3.0)
    assert (config.model.drop_path, config.masking.ratio, config.masking.count) == (0.1, 0.4, 105)
    assert config.data.crop.scale == (0.2, 1.0) and config.data.flip and config.data.normalization == "clip"


@pytest.mark.parametrize(
    ("images", "device", "name"),
    [
        (100, "cpu", "small_cpu"),
        (10**7, "cpu", "small_cpu"),
        (199_999, "cuda", "small_one_gpu"),
        (200_000, "cuda", "base_one_gpu"),
    ],
)
def test_the_recipe_of_a_run_that_names_none(images: int, device: str, name: str) -> None:
    assert choose_pretraining(images, device).recipe == name
    classification = choose_classification(images, device)
    assert classification.recipe == f"finetune_{name.removesuffix('_cpu')}"
    assert replace(classification.model, drop_path=0.0) == replace(
        choose_pretraining(images, device).model, drop_path=0.0
    )


def test_the_clip_of_a_run_that_names_none_fits_what_was_pretrained() -> None:
    for device in ("cpu", "cuda"):
        vision = choose_contrastive(device).model.vision
        images = {"cpu": 100, "cuda": 10**6}[device]
        assert replace(vision, drop_path=0.0) == replace(choose_pretraining(images, device).model, drop_path=0.0)
