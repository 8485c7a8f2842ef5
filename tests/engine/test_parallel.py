"""Where processes that torchrun starts again find one another."""

import pytest
import torch.distributed as dist

from unveil.config import UnveilError
from unveil.engine.parallel import _of_this_attempt


@pytest.fixture
def torchrun(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Its environment, on one machine, in the first attempt."""
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    monkeypatch.setenv("GROUP_WORLD_SIZE", "1")
    return monkeypatch


def test_the_dead_are_not_found_again(torchrun: pytest.MonkeyPatch) -> None:
    place = dist.HashStore()
    _of_this_attempt(place).set("address of 0", "of the dead")
    assert _of_this_attempt(place).check(["address of 0"])
    torchrun.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert not _of_this_attempt(place).check(["address of 0"])


def test_several_machines_need_a_new_place(torchrun: pytest.MonkeyPatch) -> None:
    torchrun.setenv("GROUP_WORLD_SIZE", "2")
    place = dist.HashStore()
    with pytest.raises(UnveilError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its environment"):
        _of_this_attempt(place)
    # With the variable, and without torchrun, the place is a new one each time.
    torchrun.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")
    assert _of_this_attempt(place) is place
    torchrun.delenv("TORCHELASTIC_USE_AGENT_STORE")
    assert _of_this_attempt(place) is place
