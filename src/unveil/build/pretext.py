"""What a pre-training's configuration stands for: student, head and teacher, as one task."""

import torch

from unveil.config import (
    EmaTarget,
    FeatureDistillation,
    MaskedAutoencoding,
    MaskedRegression,
    MaskedTokenPrediction,
    PixelTarget,
    PretrainConfig,
    RevColV2Config,
    VectorQuantizedDistillation,
    ViTConfig,
)
from unveil.config.revcolv2 import require_vit
from unveil.models.revcolv2 import RevColV2
from unveil.models.vit import ViT
from unveil.pretext.distillation import Distillation
from unveil.pretext.masked_autoencoding import MaskedAutoencoder
from unveil.pretext.masked_modelling import HiddenRegression, MaskedModelling
from unveil.pretext.masked_pixels import MaskedPixels
from unveil.pretext.targets.base import Target
from unveil.pretext.targets.build import build_target
from unveil.pretext.targets.codes import FrozenTokenizer, load_tokenizer
from unveil.pretext.targets.ema import EmaTeacher
from unveil.pretext.token_prediction import TokenPrediction
from unveil.pretext.tokenizer import TokenizerTraining

Pretext = HiddenRegression | Distillation | TokenizerTraining | TokenPrediction
"""A task that a configuration's objective stands for."""


def build_pretext(
    config: PretrainConfig, *, target: Target | None = None, tokenizer: FrozenTokenizer | None = None
) -> Pretext:
    """Student, head and teacher.

    Args:
        target: a frozen teacher in the place of the configuration's, which is then not loaded; as `tokenizer`.

    Raises:
        UnveilError: a teacher that cannot be had, or does not fit the student.
    """
    objective = config.objective
    match objective:
        case MaskedRegression():
            if isinstance(config.model, RevColV2Config):
                return _masked_pixels(config, config.model, objective, target)
            backbone, target = _student_and_target(config, target, mask_token=True)
            return MaskedModelling(
                backbone,
                target,
                seed=config.engine.seed,
                normalization=config.data.normalization,
                objective=objective,
            )
        case MaskedAutoencoding():
            backbone, target = _student_and_target(config, target, mask_token=False)
            return MaskedAutoencoder(
                backbone,
                target,
                seed=config.engine.seed,
                normalization=config.data.normalization,
                objective=objective,
            )
        case FeatureDistillation():
            backbone, target = _student_and_target(config, target, mask_token=False)
            return Distillation(
                backbone,
                target,
                seed=config.engine.seed,
                normalization=config.data.normalization,
                objective=objective,
            )
        case VectorQuantizedDistillation():
            backbone, target = _student_and_target(config, target, mask_token=False)
            return TokenizerTraining(
                backbone,
                target,
                seed=config.engine.seed,
                normalization=config.data.normalization,
                objective=objective,
                global_batch_size=config.optimization.global_batch_size,
            )
        case MaskedTokenPrediction():
            tokenizer = tokenizer or load_tokenizer(objective.tokenizer)
            torch.manual_seed(config.engine.seed)
            return TokenPrediction(
                ViT(_vit_of(config), mask_token=True),
                tokenizer,
                seed=config.engine.seed,
                normalization=config.data.normalization,
                objective=objective,
            )


def _student_and_target(config: PretrainConfig, given: Target | None, *, mask_token: bool) -> tuple[ViT, Target]:
    """The teacher is built first: what it draws at random must not change the student."""
    model, wanted = _vit_of(config), config.target
    frozen = given
    if frozen is None and not isinstance(wanted, EmaTarget):
        frozen = build_target(wanted, grid=model.grid, patch_size=model.patch_size)
    torch.manual_seed(config.engine.seed)
    backbone = ViT(model, mask_token=mask_token)
    if frozen is None and isinstance(wanted, EmaTarget):
        return backbone, EmaTeacher(backbone, wanted, normalization=config.data.normalization)
    assert frozen is not None
    return backbone, frozen


def _vit_of(config: PretrainConfig) -> ViTConfig:
    return require_vit(config.model, type(config.objective).__name__)


def _masked_pixels(
    config: PretrainConfig, model: RevColV2Config, objective: MaskedRegression, given: Target | None
) -> MaskedPixels:
    assert isinstance(config.target, PixelTarget)  # The configuration refuses others.
    torch.manual_seed(config.engine.seed)
    return MaskedPixels(
        RevColV2(model, mask_token=True),
        given or build_target(config.target, grid=model.grid, patch_size=model.mask_unit),
        seed=config.engine.seed,
        normalization=config.data.normalization,
        objective=objective,
    )
