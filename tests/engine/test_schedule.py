import numpy as np
import pytest

from unveil.engine import learning_rate


def test_values_are_those_of_the_released_codes_table() -> None:
    peak, minimum, warmup, total = 1e-3, 1e-5, 7, 40
    cosine = [
        minimum + 0.5 * (peak - minimum) * (1 + np.cos(np.pi * i / (total - warmup))) for i in range(total - warmup)
    ]
    table = np.concatenate([np.linspace(0, peak, warmup), cosine])
    found = [learning_rate(i, peak=peak, minimum=minimum, warmup_steps=warmup, total_steps=total) for i in range(total)]
    np.testing.assert_allclose(found, table, rtol=1e-12)


@pytest.mark.parametrize(
    ("epoch", "mean"), [(0, 2.4998e-4), (1, 7.5002e-4), (2, 9.9996e-4), (9, 9.94e-4), (49, 7.69e-4), (149, 1.0e-5)]
)
def test_epoch_means_are_those_of_the_released_log(epoch: int, mean: float) -> None:
    """EVA-01's pre-training log: 150 epochs of 7,242 steps, 2 of them warm-up. The log prints 3 to 5 digits."""
    steps = range(epoch * 7242, (epoch + 1) * 7242)
    rates = [
        learning_rate(step, peak=1e-3, minimum=1e-5, warmup_steps=2 * 7242, total_steps=150 * 7242) for step in steps
    ]
    assert np.mean(rates) == pytest.approx(mean, rel=5e-3 if epoch > 2 else 2e-5)


def test_without_warmup_the_first_step_has_the_peak() -> None:
    assert learning_rate(0, peak=0.1, minimum=0.0, warmup_steps=0, total_steps=10) == 0.1
    assert learning_rate(0, peak=0.1, minimum=0.0, warmup_steps=1, total_steps=10) == 0.0
