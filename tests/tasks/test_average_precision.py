"""Average precision against a count by hand."""

import math

import pytest
import torch

from unveil.tasks.contrastive.average_precision import average_precision


def test_average_precision_by_hand() -> None:
    scores = torch.tensor([[0.9, 0.1, 0.0], [0.8, 0.2, 0.0], [0.7, 0.3, 0.0], [0.6, 0.4, 0.0]])
    targets = torch.tensor([[True, True, False], [False, True, False], [True, False, False], [False, False, False]])
    found = average_precision(scores, targets)
    # Class 0: right at places 1 and 3 of its list, precisions 1/1 and 2/3. Class 1: at 3 and 4, 1/3 and 2/4.
    assert found.per_class == (pytest.approx((1 + 2 / 3) / 2), pytest.approx((1 / 3 + 2 / 4) / 2), None)
    assert found.mean == pytest.approx(((1 + 2 / 3) / 2 + (1 / 3 + 2 / 4) / 2) / 2)


def test_without_anything_to_find_there_is_no_mean() -> None:
    found = average_precision(torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.bool))
    assert found.per_class == (None, None) and math.isnan(found.mean)
