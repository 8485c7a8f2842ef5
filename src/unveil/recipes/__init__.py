"""Every recipe: a function without arguments that returns a complete configuration, its docstring the contract."""

from collections.abc import Callable

from unveil.config import ClassificationConfig, ContrastiveConfig, PretrainConfig, ProbeConfig
from unveil.recipes.distillation import distillation_base_300, distillation_base_800, distillation_base_1600
from unveil.recipes.eva_classification import (
    clip_base_in1k,
    distillation_base_in1k,
    eva_base_pilot_in1k,
    eva_clip_in1k_224,
    eva_clip_in1k_336,
    eva_clip_probe_224,
    eva_clip_probe_336,
    eva_giant_in1k_336,
    eva_giant_in1k_560,
    eva_giant_in21k,
    tokens_base_in1k,
)
from unveil.recipes.eva_clip import eva_clip_giant, eva_clip_giant_plus
from unveil.recipes.eva_pretraining import eva_base_pilot, eva_base_pilot_300, eva_base_pilot_1600, eva_giant
from unveil.recipes.mae import (
    mae_base,
    mae_base_in1k,
    mae_base_probe_in1k,
    mae_large,
    mae_large_in1k,
    mae_large_probe_in1k,
    mae_small_cpu,
    mae_tiny_cpu,
)
from unveil.recipes.pilot_tokens import (
    tokens_base_300,
    tokens_base_800,
    tokens_base_1600,
    tokens_small_cpu,
    vqkd_base,
    vqkd_small_cpu,
)
from unveil.recipes.revcolv2 import (
    revcolv2_base_in1k,
    revcolv2_base_in1k_after_in22k,
    revcolv2_base_in22k,
    revcolv2_base_mim,
    revcolv2_base_probe_in1k,
    revcolv2_base_scratch_in1k,
    revcolv2_large_in1k,
    revcolv2_large_in1k_after_in22k,
    revcolv2_large_in22k,
    revcolv2_large_mim,
    revcolv2_large_probe_in1k,
    revcolv2_large_scratch_in1k,
    revcolv2_small_cpu,
    revcolv2_tiny_cpu,
)
from unveil.recipes.small_data import (
    base_one_gpu,
    data2vec_small_cpu,
    distillation_small_cpu,
    maskfeat_small_cpu,
    small_cpu,
    small_one_gpu,
    tiny_cpu,
)
from unveil.recipes.small_data_classification import (
    finetune_base_one_gpu,
    finetune_revcolv2_small,
    finetune_small,
    finetune_small_one_gpu,
    finetune_tiny_cpu,
    probe_small,
)
from unveil.recipes.small_data_clip import clip_base_one_gpu, clip_small, clip_tiny_cpu

PRETRAINING: tuple[Callable[[], PretrainConfig], ...] = (
    eva_giant,
    eva_base_pilot_300,
    eva_base_pilot,
    eva_base_pilot_1600,
    distillation_base_300,
    distillation_base_800,
    distillation_base_1600,
    vqkd_base,
    tokens_base_300,
    tokens_base_800,
    tokens_base_1600,
    revcolv2_base_mim,
    revcolv2_large_mim,
    mae_base,
    mae_large,
    tiny_cpu,
    small_cpu,
    distillation_small_cpu,
    vqkd_small_cpu,
    tokens_small_cpu,
    maskfeat_small_cpu,
    data2vec_small_cpu,
    revcolv2_tiny_cpu,
    revcolv2_small_cpu,
    mae_tiny_cpu,
    mae_small_cpu,
    small_one_gpu,
    base_one_gpu,
)

CLASSIFICATION: tuple[Callable[[], ClassificationConfig], ...] = (
    eva_giant_in21k,
    eva_giant_in1k_336,
    eva_giant_in1k_560,
    eva_clip_in1k_224,
    eva_clip_in1k_336,
    eva_base_pilot_in1k,
    distillation_base_in1k,
    tokens_base_in1k,
    clip_base_in1k,
    revcolv2_base_in22k,
    revcolv2_large_in22k,
    revcolv2_base_in1k,
    revcolv2_large_in1k,
    revcolv2_base_in1k_after_in22k,
    revcolv2_large_in1k_after_in22k,
    revcolv2_base_scratch_in1k,
    revcolv2_large_scratch_in1k,
    mae_base_in1k,
    mae_large_in1k,
    finetune_tiny_cpu,
    finetune_small,
    finetune_revcolv2_small,
    finetune_small_one_gpu,
    finetune_base_one_gpu,
)

PROBES: tuple[Callable[[], ProbeConfig], ...] = (
    eva_clip_probe_224,
    eva_clip_probe_336,
    revcolv2_base_probe_in1k,
    revcolv2_large_probe_in1k,
    mae_base_probe_in1k,
    mae_large_probe_in1k,
    probe_small,
)

CONTRASTIVE: tuple[Callable[[], ContrastiveConfig], ...] = (
    eva_clip_giant,
    eva_clip_giant_plus,
    clip_tiny_cpu,
    clip_small,
    clip_base_one_gpu,
)


def choose_pretraining(images: int, device: str) -> PretrainConfig:
    """The recipe for a run that names none: what the hardware carries and the number of images can feed.

    On a processor the small network of small_cpu; on a GPU ViT-S below 200,000 images (ViT-B overfits there: DeiT and
    MAE both need ImageNet's scale to gain from it), ViT-B from there on.
    """
    if device == "cpu":
        return small_cpu()
    return small_one_gpu() if images < 200_000 else base_one_gpu()


def choose_classification(images: int, device: str) -> ClassificationConfig:
    """The recipe for a run that names none: what the hardware carries and the number of labels can feed.

    Its network is the one that `choose_pretraining` chooses for as many images, so that one can start from the other.
    """
    if device == "cpu":
        return finetune_small()
    return finetune_small_one_gpu() if images < 200_000 else finetune_base_one_gpu()


def choose_contrastive(device: str) -> ContrastiveConfig:
    """The recipe for a run that names none: what the hardware carries."""
    return clip_small() if device == "cpu" else clip_base_one_gpu()
