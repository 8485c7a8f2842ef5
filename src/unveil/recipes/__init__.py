"""Every recipe: a function without arguments that returns a complete configuration, its docstring the contract."""

from collections.abc import Callable

from unveil.config import PretrainConfig
from unveil.recipes.eva_pretraining import eva_base_pilot, eva_giant
from unveil.recipes.small_data import base_one_gpu, small_cpu, small_one_gpu, tiny_cpu

PRETRAINING: tuple[Callable[[], PretrainConfig], ...] = (
    eva_giant,
    eva_base_pilot,
    tiny_cpu,
    small_cpu,
    small_one_gpu,
    base_one_gpu,
)


def choose_pretraining(images: int, device: str) -> PretrainConfig:
    """The recipe for a run that names none: what the hardware carries and the number of images can feed.

    On a processor the small network of small_cpu; on a GPU ViT-S below 200,000 images (ViT-B overfits there: DeiT and
    MAE both need ImageNet's scale to gain from it), ViT-B from there on.
    """
    if device == "cpu":
        return small_cpu()
    return small_one_gpu() if images < 200_000 else base_one_gpu()
