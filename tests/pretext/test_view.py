"""What the workers make of an image: one crop for student and teacher, and a mask, from one generator."""

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unveil.config import BlockMasking, CenterCrop, RandomMasking, RandomResizedCrop
from unveil.config.data import Crop
from unveil.data.device_crops import TOLERANCE, DeviceCrops
from unveil.data.sources.base import Sample
from unveil.pretext.masking import masking_function
from unveil.pretext.view import MaskedCollate, MaskedView

RANDOM = RandomResizedCrop(scale=(0.3, 0.8))


def gradient(width: int = 120, height: int = 80) -> Sample:
    """Red grows to the right, green downwards: a pixel tells where it comes from."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    pixels = np.stack([x, y, np.full_like(x, 90)], axis=2).round().astype(np.uint8)
    return Sample(Image.fromarray(pixels), "gradient", None, 0)


def view_of(crop: Crop = RANDOM, *, flip: bool = True, teacher_size: int | None = 48) -> MaskedView:
    return MaskedView(
        crop=crop,
        flip=flip,
        image_size=24,
        teacher_size=teacher_size,
        grid=(6, 6),
        masking=masking_function(BlockMasking(ratio=0.4)),
    )


def differ(one: dict[str, Any], other: dict[str, Any]) -> set[str]:
    return {name for name in one if not torch.equal(torch.as_tensor(one[name]), torch.as_tensor(other[name]))}


def test_the_generator_alone_decides() -> None:
    view, sample = view_of(), gradient()
    assert not differ(view(sample, random.Random(5)), view(sample, random.Random(5)))
    assert {"image", "mask"} <= differ(view(sample, random.Random(5)), view(sample, random.Random(6)))


def test_shapes_and_types() -> None:
    view = view_of()(gradient(), random.Random(0))
    assert {name: (value.dtype, tuple(value.shape)) for name, value in view.items() if name != "flipped"} == {
        "image": (torch.uint8, (3, 24, 24)),
        "teacher_image": (torch.uint8, (3, 48, 48)),
        "mask": (torch.bool, (36,)),
    }


@pytest.mark.parametrize("seed", range(8))
def test_the_teacher_sees_the_same_crop_mirrored_alike(seed: int) -> None:
    view = view_of()(gradient(), random.Random(seed))
    student, teacher = view["image"].float(), view["teacher_image"].float()
    # A linear gradient averaged over 2 x 2 pixels is the same gradient at half the resolution.
    assert (torch.nn.functional.avg_pool2d(teacher, 2) - student).abs().max() < 3
    for image in (student, teacher):
        rightwards = image[0, :, -1] - image[0, :, 0]
        assert bool((rightwards < 0).all() if view["flipped"] else (rightwards > 0).all())
        assert bool((image[1, -1] > image[1, 0]).all())


@pytest.mark.parametrize("teacher_size", [None, 16, 48])
def test_what_the_device_resizes_is_the_same_but_for_rounding(teacher_size: int | None) -> None:
    """The same crops, mirrored alike, the same masks; pixels within the tolerance."""
    whole = view_of(teacher_size=teacher_size)
    views, deferred = (
        [view(gradient(90 + 10 * seed), random.Random(seed)) for seed in range(6)]
        for view in (whole, replace(whole, resized_on_device=True))
    )
    collate = MaskedCollate(limit=whole.masking.limit((6, 6)))
    expected = collate(views)
    found = DeviceCrops(torch.device("cpu"), 24, teacher_size)([collate(deferred)])[0]
    assert found.keys() == expected.keys() and {True, False} == set(found["flipped"].tolist())
    for name in found:
        tolerance = TOLERANCE if name.endswith("image") else 0
        torch.testing.assert_close(found[name].float(), expected[name].float(), atol=tolerance, rtol=0)


def test_half_of_the_images_are_mirrored_or_none() -> None:
    sample = gradient(12, 8)
    flips = sum(view_of(teacher_size=None)(sample, random.Random(seed))["flipped"] for seed in range(400))
    assert 150 < flips < 250
    assert not any(view_of(flip=False)(sample, random.Random(seed))["flipped"] for seed in range(20))


def test_a_centre_crop_differs_by_its_mirror_image_only() -> None:
    view, sample = view_of(CenterCrop(), teacher_size=None), gradient()
    plain = next(v["image"] for v in (view(sample, random.Random(s)) for s in range(50)) if not v["flipped"])
    for seed in range(10):
        seen = view(sample, random.Random(seed))
        assert torch.equal(seen["image"].flip(2) if seen["flipped"] else seen["image"], plain)
        assert "teacher_image" not in seen


@pytest.mark.parametrize("masking", [BlockMasking(ratio=0.4), BlockMasking(count=20), RandomMasking(ratio=0.5)])
def test_a_batch_s_shapes_do_not_depend_on_the_draw(masking: BlockMasking | RandomMasking) -> None:
    function = masking_function(masking)
    limit = function.limit((6, 6))
    view = MaskedView(crop=RANDOM, flip=True, image_size=12, teacher_size=18, grid=(6, 6), masking=function)
    collate, sample = MaskedCollate(limit=limit), gradient(30, 20)
    counts = set()
    for start in range(0, 60, 3):
        batch = collate([view(sample, random.Random(start + i)) for i in range(3)])
        assert {name: tuple(value.shape) for name, value in batch.items()} == {
            "image": (3, 3, 12, 12),
            "teacher_image": (3, 3, 18, 18),
            "mask": (3, 36),
            "flipped": (3,),
            "hidden": (3, limit),
            "hidden_weight": (3, limit),
        }
        assert batch["flipped"].dtype == torch.bool and batch["hidden"].dtype == torch.int64
        for mask, hidden, weight in zip(batch["mask"], batch["hidden"], batch["hidden_weight"], strict=True):
            assert hidden[weight == 1].tolist() == mask.nonzero().flatten().tolist()
            assert set(weight.tolist()) <= {0.0, 1.0} and not hidden[weight == 0].any()
            counts.add(int(mask.sum()))
    assert max(counts) <= limit
