"""The embedded teacher against timm's plain network, and what its statistics are for."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from unveil.data.samples.photos import PHOTOS, photo_crop
from unveil.pretext.targets.embedded import PIXEL_MEAN, PIXEL_STD, EmbeddedTeacher, load_network


def crops_of(photo: int, size: int) -> torch.Tensor:
    """The whole photo's middle and four corners of half its side."""
    parts = ((1.0, 0.5, 0.5), *((0.5, left, top) for left in (0.0, 1.0) for top in (0.0, 1.0)))
    crops = [np.asarray(photo_crop(photo, side, left, top, False, size, False)) for side, left, top in parts]
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).contiguous()


@pytest.fixture(scope="module")
def photos() -> torch.Tensor:
    return torch.cat([crops_of(number, 96)[:2] for number in (0, 2, 4)])


def plain_features(photos: torch.Tensor) -> torch.Tensor:
    """timm's own forward, every BatchNorm in place, in fp32."""
    with torch.no_grad():
        cells = load_network().forward_features((photos.float() - PIXEL_MEAN) / PIXEL_STD)
    return cells.flatten(2).transpose(1, 2)


def test_folding_changes_nothing(photos: torch.Tensor) -> None:
    teacher = EmbeddedTeacher((3, 3), normalization="none", precision=torch.float32)
    features = teacher(photos)
    assert features.shape == (6, 9, 1280) and teacher.dim == 1280 and teacher.image_size == 96
    assert torch.allclose(features, plain_features(photos), atol=1e-3)
    assert F.cosine_similarity(features, plain_features(photos), dim=-1).min() > 0.9999


def test_bfloat16_stays_close(photos: torch.Tensor) -> None:
    teacher = EmbeddedTeacher((3, 3), normalization="none", precision=torch.bfloat16)
    similarity = F.cosine_similarity(teacher(photos), plain_features(photos), dim=-1)
    assert teacher(photos).dtype == torch.float32
    assert similarity.mean() > 0.99


def test_knows_what_it_sees() -> None:
    """The weights lie where they belong and images are scaled as in its training: coffee is an espresso (class 967)."""
    coffee = crops_of(2, 224)[:1]
    with torch.no_grad():
        scores = load_network()((coffee.float() - PIXEL_MEAN) / PIXEL_STD).softmax(dim=-1)
    assert scores.argmax().item() == 967 and scores.max() > 0.9


def test_fit_takes_the_statistics_of_its_examples() -> None:
    raw = EmbeddedTeacher((2, 2), normalization="none", precision=torch.float32)
    centred = EmbeddedTeacher((2, 2), normalization="centre", precision=torch.float32)
    standardized = EmbeddedTeacher((2, 2), normalization="standardize", precision=torch.float32)
    crops = torch.cat([crops_of(number, 28) for number in range(len(PHOTOS))])
    assert torch.equal(centred(crops), raw(crops))
    for teacher in (raw, centred, standardized):
        teacher.fit(crops)
    cells = raw(crops).flatten(0, 1)
    assert centred(crops).flatten(0, 1).mean(dim=0).abs().max() < 1e-4
    std = standardized(crops).flatten(0, 1).std(dim=0)
    alive = cells.std(dim=0) > 0.1
    assert alive.float().mean() > 0.9
    assert torch.allclose(std[alive], torch.ones_like(std[alive]), atol=1e-3)
    assert bool((std[~alive] < 1.0).all())


def test_enlarges_what_is_small_and_takes_any_grid() -> None:
    teacher = EmbeddedTeacher((2, 3), normalization="none")
    images = torch.randint(0, 256, (2, 3, 28, 28), dtype=torch.uint8)
    assert teacher(images).shape == (2, 6, 1280)


def test_its_features_may_be_kept_for_backward() -> None:
    teacher = EmbeddedTeacher((1, 1))
    features = teacher(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    prediction = torch.zeros_like(features, requires_grad=True)
    F.cosine_similarity(prediction + 1, features, dim=-1).sum().backward()
    assert prediction.grad is not None


def test_the_name_tells_targets_apart() -> None:
    names = {
        EmbeddedTeacher(grid, normalization=normalization).name
        for grid in ((1, 1), (1, 2))
        for normalization in ("none", "centre")
    }
    assert len(names) == 4
