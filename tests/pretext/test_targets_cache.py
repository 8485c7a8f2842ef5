"""Cached features equal computed ones."""

from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from unveil.config import UnveilError
from unveil.data.sources.base import Sample, UnreadableSample
from unveil.pretext.targets.cache import CHUNK, TargetCache
from unveil.pretext.targets.pixels import PixelPatches


class Noise:
    """Random images; `broken` ones cannot be read."""

    def __init__(self, count: int, broken: frozenset[int] = frozenset()) -> None:
        self.pixels = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
        self.broken = broken

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Sample:
        if index in self.broken:
            raise UnreadableSample(f"noise {index}", "broken")
        return Sample(Image.fromarray(self.pixels[index]), f"noise {index}", None, index)

    def digest(self) -> dict[str, dict[str, object]]:
        return {}


def view(sample: Sample) -> UInt8[Tensor, "3 h w"]:
    return torch.from_numpy(np.asarray(sample.image).copy()).permute(2, 0, 1)


def filled(source: Noise, *, flips: bool, folder: Path | None = None) -> TargetCache:
    target = PixelPatches((2, 2), patch_size=4, normalize=True)
    cache = TargetCache(target, len(source), flips=flips, random_crops=False, folder=folder)
    cache.fill(source, view, "cpu", lambda done, count: None)
    return cache


@pytest.mark.parametrize("in_a_file", [False, True])
def test_equals_computing(in_a_file: bool, tmp_path: Path) -> None:
    source = Noise(CHUNK + 9)
    cache = filled(source, flips=True, folder=tmp_path if in_a_file else None)
    indices, flipped = torch.tensor([CHUNK + 8, 0, 3, 3]), torch.tensor([False, True, True, False])
    images = torch.stack([view(source[i]) for i in indices.tolist()])
    images = torch.where(flipped[:, None, None, None], images.flip(3), images)
    features = cache.lookup(indices, flipped)
    assert features.dtype == torch.float16
    assert torch.allclose(features.float(), cache.target(images), atol=2e-3)
    similarity = torch.nn.functional.cosine_similarity(features.float(), cache.target(images), dim=-1)
    assert (1 - similarity).abs().max() < 1e-6
    assert list(tmp_path.iterdir()) == []


def test_the_same_bits_each_time() -> None:
    source = Noise(CHUNK + 5)
    everything = torch.arange(len(source))
    first, second = (filled(source, flips=True) for _ in range(2))
    for flipped in (torch.zeros(len(source), dtype=torch.bool), torch.ones(len(source), dtype=torch.bool)):
        assert torch.equal(first.lookup(everything, flipped), second.lookup(everything, flipped))


def test_the_teacher_always_sees_the_same_chunks() -> None:
    sizes: list[int] = []

    class Counting(PixelPatches):
        def __call__(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b n d"]:
            sizes.append(len(images))
            return super().__call__(images)

    done: list[tuple[int, int]] = []
    source = Noise(2 * CHUNK + 1)
    cache = TargetCache(Counting((1, 1), patch_size=8, normalize=True), len(source), flips=False, random_crops=False)
    cache.fill(source, view, "cpu", lambda *step: done.append(step))
    assert sizes == [CHUNK, CHUNK, 1]
    assert done[-1] == (len(source), len(source)) and len(done) == 3


def test_random_crops_are_refused() -> None:
    with pytest.raises(UnveilError, match="random crops cannot be cached"):
        TargetCache(PixelPatches((2, 2), patch_size=4, normalize=True), 3, flips=True, random_crops=True)


def test_unreadable_samples_are_left_out_and_never_given() -> None:
    source = Noise(5, broken=frozenset({2}))
    cache = filled(source, flips=False)
    assert cache.lookup(torch.tensor([1, 3]), torch.tensor([False, False])).shape == (2, 4, 48)
    with pytest.raises(UnveilError, match=r"samples \[2\]"):
        cache.lookup(torch.tensor([1, 2]), torch.tensor([False, False]))


def test_features_too_large_for_fp16_are_refused() -> None:
    class Huge(PixelPatches):
        def __call__(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b n d"]:
            return super().__call__(images) * 1e6

    cache = TargetCache(Huge((2, 2), patch_size=4, normalize=True), 3, flips=False, random_crops=False)
    with pytest.raises(UnveilError, match="too large"):
        cache.fill(Noise(3), view, "cpu", lambda done, count: None)


def test_no_room_is_said(tmp_path: Path) -> None:
    target = PixelPatches((1000, 1000), patch_size=16, normalize=True)
    with pytest.raises(UnveilError, match=r"no room in .* GB"):
        TargetCache(target, 10**6, flips=True, random_crops=False, folder=tmp_path)
