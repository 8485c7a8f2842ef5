"""Recalls against a count by hand over sorted lists, ties and all."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from unveil.config import UnveilError
from unveil.tasks.contrastive import retrieval as module
from unveil.tasks.contrastive.retrieval import nearest, retrieval


def counted(scores: np.ndarray, right: list[set[int]], rank: int) -> float:
    """Share of rows with one of the right columns among the first `rank` of a stable sort."""
    hits = [
        bool(wanted & set(np.argsort(-row, kind="stable")[:rank].tolist()))
        for row, wanted in zip(scores, right, strict=True)
    ]
    return sum(hits) / len(hits)


@pytest.mark.parametrize("ties", [False, True])
def test_recalls_equal_a_count_by_hand(ties: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUERIES_AT_A_TIME", 7)
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(40, 6, generator=generator)
    owners = torch.randint(0, 40, (130,), generator=generator)
    owners[owners == 11] = 12
    texts = images[owners] + 1.2 * torch.randn(130, 6, generator=generator)
    if ties:
        # Integers: equal cosines are equal to the last bit, and there are many.
        images, texts = images.sign(), texts.sign()
    else:
        images, texts = F.normalize(images, dim=1), F.normalize(texts, dim=1)
    found = retrieval(images, texts, owners)
    scores = (images @ texts.T).numpy()
    with_text = sorted(set(owners.tolist()))
    assert 11 not in with_text and found.images == len(with_text) and found.texts == 130
    mine = [{text for text, owner in enumerate(owners.tolist()) if owner == image} for image in with_text]
    for rank in (1, 5, 10):
        assert found.image_to_text[rank] == pytest.approx(counted(scores[with_text], mine, rank), abs=1e-12)
        assert found.text_to_image[rank] == pytest.approx(counted(scores.T, [{o} for o in owners.tolist()], rank))
    assert 0.1 < found.text_to_image[1] < found.text_to_image[5] < found.text_to_image[10] < 1.0
    assert list(found.numbers()) == [f"{way}_r{k}" for way in ("text_to_image", "image_to_text") for k in (1, 5, 10)]


def test_one_text_an_image_found_by_all() -> None:
    images = torch.eye(4)
    found = retrieval(images, images[[2, 0, 3, 1]], torch.tensor([2, 0, 3, 1]))
    assert set(found.numbers().values()) == {1.0}


def test_a_model_that_answers_everything_alike_is_at_chance() -> None:
    alike = F.normalize(torch.ones(20, 3), dim=1)
    found = retrieval(alike, alike, torch.arange(20))
    assert found.text_to_image == found.image_to_text == {1: 1 / 20, 5: 5 / 20, 10: 10 / 20}


def test_what_cannot_be_retrieved() -> None:
    images = torch.eye(3)
    broken = images.clone()
    broken[1, 0] = math.nan
    with pytest.raises(UnveilError, match="1 of 3 images are not finite, the first of them number 1"):
        retrieval(broken, images, torch.arange(3))
    with pytest.raises(UnveilError, match="1 of 3 texts are not finite"):
        retrieval(images, broken, torch.arange(3))
    for owners in (torch.tensor([0, 1, 3]), torch.tensor([0, 1, -1])):
        with pytest.raises(UnveilError, match="must be numbers from 0 to 2"):
            retrieval(images, images, owners)
    with pytest.raises(UnveilError, match="nothing to retrieve"):
        retrieval(images, torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))


def test_the_nearest_come_first_and_equals_in_order() -> None:
    features = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.6, 0.8], [1.0, 0.0]])
    found = nearest(torch.tensor([1.0, 0.0]), features, 3)
    assert [place for place, _ in found] == [1, 3, 2]
    assert [score for _, score in found] == pytest.approx([1.0, 1.0, 0.6])
    assert len(nearest(torch.tensor([1.0, 0.0]), features, 100)) == 4
    features[2] = math.nan
    with pytest.raises(UnveilError, match="1 of 4 images cannot be compared with the text"):
        nearest(torch.tensor([1.0, 0.0]), features, 3)
