"""--set NAME=VALUE: what is taken, and the sentences for what is not."""

import pytest

from unveil.config import (
    CenterCrop,
    ClipTarget,
    FashionScenes,
    MaskedTokenPrediction,
    PatchAggregation,
    RandomMasking,
    UnveilError,
)
from unveil.config.override import override, recipe_named
from unveil.recipes import PRETRAINING, eva_giant, tiny_cpu
from unveil.recipes.quickstart import quickstart


@pytest.mark.parametrize(
    ("assignment", "path", "expected"),
    [
        ("recipe=mine", "recipe", "mine"),
        ("model.width=128", "model.width", 128),
        ("model.drop_path=0.25", "model.drop_path", 0.25),
        ("model.drop_path=0", "model.drop_path", 0.0),
        ("optimization.optimizer.learning_rate=3e-4", "optimization.optimizer.learning_rate", 3e-4),
        ("optimization.optimizer.betas=0.9, 0.999", "optimization.optimizer.betas", (0.9, 0.999)),
        ("optimization.optimizer.betas=(0.9,0.95)", "optimization.optimizer.betas", (0.9, 0.95)),
        ("data.source.paths=/a,/b c", "data.source.paths", ("/a", "/b c")),
        ("data.flip=false", "data.flip", False),
        ("data.flip=True", "data.flip", True),
        ("data.workers=none", "data.workers", None),
        ("data.workers=3", "data.workers", 3),
        ("optimization.clip_gradient_norm=None", "optimization.clip_gradient_norm", None),
        ("model.layer_scale=0.1", "model.layer_scale", 0.1),
        ("init_from=/runs/a=b", "init_from", "/runs/a=b"),
        ("engine.precision=bf16", "engine.precision", "bf16"),
        ("engine.trackers=", "engine.trackers", ()),
        ("engine.trackers=wandb,tensorboard", "engine.trackers", ("wandb", "tensorboard")),
        ("data.crop=CenterCrop", "data.crop", CenterCrop()),
        ("masking=RandomMasking", "masking", RandomMasking()),
        ("target=ClipTarget", "target", ClipTarget()),
        ("data.validation=FashionScenes", "data.validation", FashionScenes()),
    ],
)
def test_values_of_every_kind(assignment: str, path: str, expected: object) -> None:
    value = override(tiny_cpu(), [assignment])
    for name in path.split("."):
        value = getattr(value, name)
    assert value == expected and type(value) is type(expected)


def test_the_rest_stays_and_the_later_assignment_counts() -> None:
    before = tiny_cpu()
    after = override(before, ["model.width=128", "engine.seed=7", "model.width=256"])
    assert (after.model.width, after.engine.seed) == (256, 7)
    assert after.model.depth == before.model.depth and after.data is before.data
    assert before == tiny_cpu()


def test_values_that_are_valid_only_together() -> None:
    """42 pixels do not divide into the recipe's patches of 8, nor 14 its 32 pixels."""
    config = override(tiny_cpu(), ["model.image_size=42", "model.patch_size=14"])
    assert config.model.grid == (3, 3)
    config = override(eva_giant(), ["optimization.steps=10", "optimization.epochs=none"])
    assert (config.optimization.steps, config.optimization.epochs) == (10, None)


def test_setting_a_length_takes_back_its_rival() -> None:
    in_steps = override(eva_giant(), ["optimization.steps=10", "optimization.warmup_steps=2"])
    assert (in_steps.optimization.epochs, in_steps.optimization.warmup_epochs) == (None, None)
    in_epochs = override(in_steps, ["optimization.epochs=3"])
    assert (in_epochs.optimization.steps, in_epochs.optimization.epochs) == (None, 3.0)
    with pytest.raises(UnveilError, match="both steps and epochs"):
        override(eva_giant(), ["optimization.steps=10", "optimization.epochs=3"])


def test_a_class_and_its_fields_together() -> None:
    names = ["objective.tokenizer=mine", "objective=MaskedTokenPrediction", "objective.aggregation=PatchAggregation"]
    objective = override(tiny_cpu(), names).objective
    assert objective == MaskedTokenPrediction(tokenizer="mine", aggregation=PatchAggregation())
    config = override(tiny_cpu(), ["target.name=ViT-B-16/openai", "target=ClipTarget", "masking=RandomMasking"])
    assert config.target == ClipTarget(name="ViT-B-16/openai") and config.masking == RandomMasking()


def test_configurations_of_other_commands() -> None:
    config = override(quickstart(), ["probe_labels=50,500", "test.count=100", "pretrain.optimization.epochs=1"])
    assert (config.probe_labels, config.test.count, config.pretrain.optimization.epochs) == ((50, 500), 100, 1.0)


@pytest.mark.parametrize(
    ("assignment", "sentence"),
    [
        ("model.width", "write NAME=VALUE"),
        ("model.widht=3", "ViTConfig has no 'widht'; perhaps you meant model.width"),
        ("optimisation.steps=3", "PretrainConfig has no 'optimisation'; perhaps you meant optimization"),
        ("optimization.optimizer.learning_rat=1", "perhaps you meant optimization.optimizer.learning_rate"),
        ("model.zzzz=3", "there are: image_size, patch_size"),
        ("recipe.name=3", "recipe holds 'tiny_cpu', which has no 'name'"),
        ("masking.min_blok=3", "perhaps you meant masking.min_block"),
        ("model.width=wide", "model.width=wide: expected int"),
        ("model.width=1.5", "expected int"),
        ("model.width=none", "expected int"),
        ("optimization.epochs=many", "expected float or none"),
        ("optimization.epochs=nan", "expected float or none"),
        ("optimization.epochs=inf", "expected float or none"),
        ("data.flip=perhaps", "data.flip=perhaps: expected bool"),
        ("model.activation_checkpointing=some", "expected bool or int or selective"),
        ("engine.precision=fp8", "expected one of auto, fp32, bf16, fp16"),
        ("engine.trackers=wandb,mlflow", "mlflow: expected one of tensorboard, wandb, trackio"),
        ("optimization.optimizer.betas=0.9", "betas=0.9: expected 2 of float, with commas between"),
        ("optimization.optimizer.betas=0.9,0.98,1", "expected 2 of float"),
        ("optimization.optimizer.betas=0.9,x", "betas=x: expected float"),
        ("data.crop=Middle", "expected RandomResizedCrop or CenterCrop"),
        ("target=TimmTarget", "TimmTarget cannot be chosen by its class alone, it needs name"),
        ("model.heads=7", "model.width 64 is not a multiple of model.heads 7"),
        ("data.validation.size=3", "validation holds None"),
    ],
)
def test_one_clear_sentence(assignment: str, sentence: str) -> None:
    with pytest.raises(UnveilError) as raised:
        override(tiny_cpu(), [assignment])
    assert sentence in str(raised.value) and "\n" not in str(raised.value)


def test_recipes_by_name() -> None:
    assert recipe_named("eva_giant", PRETRAINING) is eva_giant
    with pytest.raises(UnveilError, match=r"no recipe is called 'eva_gaint'; perhaps you meant eva_giant"):
        recipe_named("eva_gaint", PRETRAINING)
    with pytest.raises(UnveilError, match=r"there are eva_giant, .*tiny_cpu"):
        recipe_named("§", PRETRAINING)
