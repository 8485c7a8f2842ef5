"""The device that a person names, or the best there is."""

import torch

from unveil.config import UnveilError


def find_device(given: str | None) -> torch.device:
    """`given`, such as "cuda:1"; None = a GPU where there is one.

    Raises:
        UnveilError: there is no such device.
    """
    if given is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(given)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UnveilError(f"device {given!r} cannot be used here ({reason}); try cpu") from error
    return device
