"""Teachers' weights: from a local file, from the hub's local cache, or from the hub when it can be reached."""

import urllib.error
import urllib.request
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unveil.config import UnveilError
from unveil.config.teacher import WITHOUT_HUB

REACH_SECONDS = 5.0
"""The hub's own client tries for a minute before it gives up."""


def fetch(teacher: str, repository: str, files: tuple[str, ...]) -> Path:
    """The first of `files` that the hub's `repository` holds, downloaded once and kept in the hub's cache.

    Raises:
        UnveilError: the hub is not reachable or does not give the file.
    """
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    for file in files:
        cached = try_to_load_from_cache(repository, file)
        if isinstance(cached, str):
            return Path(cached)
    if constants.HF_HUB_OFFLINE:
        raise UnveilError(f"the teacher {teacher} is not in the hub's cache and HF_HUB_OFFLINE is set: {WITHOUT_HUB}")
    require_reachable(teacher, constants.ENDPOINT)
    for file in files:
        try:
            return Path(hf_hub_download(repository, file))
        except LocalEntryNotFoundError as error:
            raise _failed(teacher, repository, error) from error
        except EntryNotFoundError:
            continue
        except Exception as error:
            raise _failed(teacher, repository, error) from error
    raise UnveilError(f"the teacher {teacher}: {repository} on the hub holds none of {', '.join(files)}; {WITHOUT_HUB}")


def _failed(teacher: str, repository: str, error: Exception) -> UnveilError:
    return UnveilError(
        f"the teacher {teacher} ({repository}) could not be downloaded: {_first_line(error)}; {WITHOUT_HUB}"
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def require_reachable(teacher: str, address: str) -> None:
    """Raises UnveilError where no answer comes from `address` within a few seconds. Any answer will do."""
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=REACH_SECONDS).close()
    except urllib.error.HTTPError:
        return
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise UnveilError(
            f"the teacher {teacher} must be downloaded, but {address} cannot be reached ({reason}): {WITHOUT_HUB}"
        ) from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, of a PyTorch file, or of a TorchScript archive (as OpenAI's files are).

    Looks inside `state_dict`, `model` or `module` where the file wraps its weights so, and drops the prefix `module.`.
    Nothing but tensors is unpickled.

    Raises:
        UnveilError: the file cannot be read or holds no weights.
    """
    try:
        content = _load(path)
    except Exception as error:
        raise UnveilError(
            f"the weights {path} cannot be read: it is cut short, or holds neither safetensors nor PyTorch weights "
            f"({type(error).__name__}: {_first_line(error)})"
        ) from error
    for wrapper in ("state_dict", "model", "module"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    tensors = content.items() if isinstance(content, dict) else ()
    state = {str(name).removeprefix("module."): value for name, value in tensors if isinstance(value, Tensor)}
    if not state:
        raise UnveilError(f"the weights {path} hold no tensors; a state dict is needed")
    return state


def is_torchscript(path: Path) -> bool:
    """Whether the file is a program with its weights, as OpenAI released CLIP, and not weights alone."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("constants.pkl") for name in archive.namelist())


def _load(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    if is_torchscript(path):
        with warnings.catch_warnings():
            # TorchScript is deprecated, but that is what OpenAI's files are.
            warnings.simplefilter("ignore", FutureWarning)
            return dict(torch.jit.load(path, map_location="cpu").state_dict())
    return torch.load(path, map_location="cpu", weights_only=True)
