"""What frozen features are worth: a linear probe, kNN, and the few labels both are given."""

import random
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

REGULARISATION = (1e-4, 1e-3, 1e-2, 1e-1)
"""Inverse strengths among which the probe chooses on its own training labels."""


def few_labels(labels: Sequence[int], count: int, seed: int) -> list[int]:
    """Places of `count` labelled samples, as many of each class as of any other (to within one), drawn by `seed`."""
    rng = random.Random(f"few labels {seed}")
    places: dict[int, list[int]] = {}
    for place, label in enumerate(labels):
        places.setdefault(label, []).append(place)
    for members in places.values():
        rng.shuffle(members)
    turns = [(turn, label) for label in sorted(places) for turn in range(len(places[label]))]
    return sorted(places[label][turn] for turn, label in sorted(turns)[:count])


def linear_probe(
    train: Float[Tensor, "n d"],
    train_labels: Int64[Tensor, "n"],
    test: Float[Tensor, "m d"],
    test_labels: Int64[Tensor, "m"],
) -> float:
    """Test accuracy, 0 to 1, of multinomial logistic regression on standardised features.

    The strength of the regularisation is chosen on a held-out fifth of each class's training labels (where every class
    has one label only, on the labels learnt from), then all are used.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    mean, deviation = train.mean(0), train.std(0).clamp_min(1e-6)
    x, y = ((train - mean) / deviation).numpy(), train_labels.numpy()
    order = np.random.default_rng(0).permutation(len(y))
    # Class by class, and never the whole of one: a class can be so small that all of it would be held out.
    classes = [order[y[order] == label] for label in np.unique(y)]
    held = [len(members) // 5 or int(len(members) > 1) for members in classes]
    kept = np.concatenate([members[count:] for members, count in zip(classes, held, strict=True)])
    held_out = np.concatenate([members[:count] for members, count in zip(classes, held, strict=True)])
    judged = held_out if len(held_out) else kept

    def fitted(strength: float, rows: np.ndarray) -> LogisticRegression:
        with warnings.catch_warnings():
            # A hundred iterations are enough for the accuracy; the last digits of the weights do not matter.
            warnings.simplefilter("ignore", ConvergenceWarning)
            return LogisticRegression(C=strength, max_iter=100, tol=1e-3).fit(x[rows], y[rows])

    best = max(REGULARISATION, key=lambda strength: fitted(strength, kept).score(x[judged], y[judged]))
    return float(fitted(best, order).score(((test - mean) / deviation).numpy(), test_labels.numpy()))


def knn_accuracy(
    train: Float[Tensor, "n d"],
    train_labels: Int64[Tensor, "n"],
    test: Float[Tensor, "m d"],
    test_labels: Int64[Tensor, "m"],
    *,
    neighbours: int = 20,
    temperature: float = 0.07,
) -> float:
    """Test accuracy, 0 to 1, of a vote of the nearest training features, weighted by exp(cosine / temperature)."""
    votes_of = torch.nn.functional.one_hot(train_labels).float()
    centre = train.mean(0)
    train = torch.nn.functional.normalize(train - centre, dim=1)
    test = torch.nn.functional.normalize(test - centre, dim=1)
    correct = 0
    for rows, labels in zip(test.split(512), test_labels.split(512), strict=True):
        similarity, nearest = (rows @ train.T).topk(min(neighbours, len(train)), dim=1)
        votes = (votes_of[nearest] * (similarity / temperature).exp()[:, :, None]).sum(1)
        correct += int((votes.argmax(1) == labels).sum())
    return correct / len(test)
