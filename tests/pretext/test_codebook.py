"""The codebook: nearest codes by brute force, its rule by hand, splits of a batch, what revives dead codes."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.pretext.tokenizers import alone
from unveil.pretext.codebook import GRACE, Codebook, usage_metrics

DIM = 5


def book(size: int = 8, *, batch: int = 4, seed: int = 0, revive_below: float = 0.1) -> Codebook:
    torch.manual_seed(1)
    return Codebook(size, DIM, decay=0.9, revive_below=revive_below, seed=seed, global_batch_size=batch)


def alive(codebook: Codebook) -> Codebook:
    """As if every code had its share of use."""
    codebook.usage.fill_(1.0)
    return codebook


def features_of(count: int = 4, patches: int = 3, seed: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, patches, DIM, generator=generator), dim=2)


def numbers(step: int, batch: int = 4) -> Tensor:
    return torch.arange(step * batch, (step + 1) * batch)


def observe(codebook: Codebook, features: Tensor, sample_numbers: Tensor) -> None:
    codebook.observe(features, codebook.nearest(features), sample_numbers)


def test_codes_begin_on_the_unit_sphere_and_the_nearest_is_found() -> None:
    codebook, features = book(), features_of()
    torch.testing.assert_close(codebook.codes.norm(dim=1), torch.ones(8))
    distances = torch.cdist(features.double(), codebook.codes.double())
    assert torch.equal(codebook.nearest(features), distances.argmin(dim=2))


def test_one_step_by_hand() -> None:
    """A code goes a tenth of the way to its features' direction, however many they are; use is relative to the mean."""
    codebook, features = alive(book()), features_of()
    before, taken = codebook.codes.numpy().copy(), codebook.nearest(features).flatten().numpy()
    observe(codebook, features, numbers(0))
    metrics = codebook.learn(True, alone)
    flat = features.flatten(0, 1).numpy()
    for code in range(8):
        expected = before[code]
        if (taken == code).any():
            mean = flat[taken == code].mean(axis=0)
            expected = 0.9 * before[code] + 0.1 * mean / np.linalg.norm(mean)
            expected = expected / np.linalg.norm(expected)
        np.testing.assert_allclose(codebook.codes[code], expected, atol=1e-6)
        share = (taken == code).mean() * 8
        assert codebook.usage[code].item() == pytest.approx(0.9 + 0.1 * share, abs=1e-6)
    counts = np.bincount(taken, minlength=8)
    shares = counts[counts > 0] / 12
    assert 0 < (counts == 0).sum() < 8, "this batch must leave some codes alone"
    assert metrics["codebook_use"].item() == pytest.approx((counts > 0).mean())
    perplexity = math.exp(-(shares * np.log(shares)).sum())
    assert metrics["codebook_perplexity"].item() == pytest.approx(perplexity / 8, rel=1e-5)
    assert metrics["codebook_revived"].item() == 0


@pytest.mark.parametrize("split", [(1, 3), (2, 2), (1, 1, 1, 1)])
def test_a_step_is_the_same_however_its_batch_is_split(split: tuple[int, ...]) -> None:
    books = [book(), book()]
    for step in range(3):
        features = features_of(seed=step)
        observe(books[0], features, numbers(step))
        for part, place in zip(features.split(split), numbers(step).split(split), strict=True):
            observe(books[1], part, place)
        metrics = [codebook.learn(True, alone) for codebook in books]
        assert all(torch.equal(metrics[0][name], metrics[1][name]) for name in metrics[0])
        torch.testing.assert_close(books[0].codes, books[1].codes, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(books[0].usage, books[1].usage, atol=1e-6, rtol=1e-6)


def test_sums_of_other_processes_count() -> None:
    """Two processes hold two samples each: what each adds up with the other's is the whole."""
    whole, halves = alive(book()), [alive(book()), alive(book())]
    features = features_of()
    observe(whole, features, numbers(0))
    whole.learn(True, alone)
    seen: list[dict[str, Tensor]] = []
    for codebook, part, place in zip(halves, features.split(2), numbers(0).split(2), strict=True):
        observe(codebook, part, place)
        codebook.learn(False, lambda sums: seen.append({name: value.clone() for name, value in sums.items()}))

    def add_up(sums: dict[str, Tensor]) -> None:
        for name, value in sums.items():
            value.copy_(seen[0][name] + seen[1][name])

    observe(halves[0], features[:2], numbers(0)[:2])
    halves[0].learn(True, add_up)
    torch.testing.assert_close(halves[0].codes, whole.codes, atol=1e-6, rtol=1e-6)


def test_a_step_that_moved_no_weights_moves_no_codes_and_is_forgotten() -> None:
    skipped, other = alive(book()), alive(book())
    before = skipped.codes.clone()
    observe(skipped, features_of(seed=1), numbers(0))
    metrics = skipped.learn(False, alone)
    assert metrics["codebook_use"] > 0 and metrics["codebook_revived"] == 0
    assert torch.equal(skipped.codes, before)
    for codebook in (skipped, other):
        observe(codebook, features_of(seed=2), numbers(1))
        codebook.learn(True, alone)
    assert torch.equal(skipped.codes, other.codes) and torch.equal(skipped.usage, other.usage)


def test_the_first_batch_makes_the_first_codes() -> None:
    codebook, features = book(20), features_of()
    observe(codebook, features, numbers(0))
    assert codebook.learn(True, alone)["codebook_revived"] == 20
    matches = (codebook.codes[:, None] == features.flatten(0, 1)).all(dim=2)
    assert matches.any(dim=1).all(), "every code is one of the features, to the bit"
    assert matches.any(dim=0).sum() > 6, "and they are drawn from all over the batch"


def test_what_revives_is_drawn_anew_each_step_and_from_the_seed() -> None:
    found = []
    for seed, step in ((0, 0), (0, 1), (1, 0), (0, 0)):
        codebook = book(20, seed=seed)
        observe(codebook, features_of(), numbers(step))
        codebook.learn(True, alone)
        found.append(codebook.codes.clone())
    assert torch.equal(found[0], found[3])
    assert not torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_a_code_that_nothing_takes_dies_after_its_grace() -> None:
    """Code 0 lies opposite to everything: it is revived, taken by nothing again (it is put back), and so on."""
    codebook = alive(book(2))
    cluster = F.normalize(torch.tensor([1.0, 0.01, 0.0, 0.0, 0.0]), dim=0)
    deaths = []
    for step in range(60):
        codebook.codes[0] = -cluster
        codebook.codes[1] = cluster
        observe(codebook, cluster.expand(4, 3, DIM), numbers(step))
        if codebook.learn(True, alone)["codebook_revived"] > 0:
            deaths.append(step)
            torch.testing.assert_close(codebook.codes[0], cluster)
    # 0.9^22 is the first power below 0.1; from then on once in a grace.
    assert deaths[0] == 21
    assert np.diff(deaths).tolist() == [GRACE] * (len(deaths) - 1)


@pytest.mark.parametrize(("revive_below", "least", "most"), [(0.1, 0.9, 1.0), (0.0, 0.0, 0.5)])
def test_codes_follow_features_that_have_gone_elsewhere(revive_below: float, least: float, most: float) -> None:
    """As an encoder's do at the start of training."""
    generator = torch.Generator().manual_seed(0)

    def points(centre: int, spread: float) -> Tensor:
        return F.normalize(torch.eye(DIM)[centre] + spread * torch.randn(16, 12, DIM, generator=generator), dim=2)

    codebook = book(30, batch=16, revive_below=revive_below)
    for step in range(100):
        observe(codebook, points(0, 0.01) if step == 0 else points(1, 0.2), numbers(step, 16))
        codebook.learn(True, alone)
    held_out = codebook.nearest(torch.cat([points(1, 0.2) for _ in range(10)]))
    found = usage_metrics(torch.bincount(held_out.flatten(), minlength=30))
    assert least <= found["codebook_use"] <= most
