"""Reading weights: wrappings, TorchScript archives, and a clear sentence for everything else."""

import argparse
import datetime
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from unveil.config import UnveilError
from unveil.weights.read import read_weights

WEIGHTS = {"a": torch.arange(6.0).view(2, 3), "b.c": torch.ones(4, dtype=torch.float16)}


def same(read: dict[str, torch.Tensor]) -> bool:
    return read.keys() == WEIGHTS.keys() and all(torch.equal(read[name], WEIGHTS[name]) for name in WEIGHTS)


@pytest.mark.parametrize(
    "content",
    [
        WEIGHTS,
        {"model": WEIGHTS, "args": argparse.Namespace(lr=1.0), "epoch": 3},
        {"module": WEIGHTS, "optimizer": {"state": {}}},
        {"state_dict": WEIGHTS},
        {"model_ema": WEIGHTS, "model": {"a": torch.zeros(1)}},
        {"model": {"state_dict": WEIGHTS}},
    ],
)
def test_wrappings_come_off(content: dict, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pt")
    assert same(read_weights(tmp_path / "weights.pt"))


def test_safetensors_and_the_old_pickle_format(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "weights.safetensors")
    torch.save(WEIGHTS, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert same(read_weights(tmp_path / "weights.safetensors")) and same(read_weights(tmp_path / "old.pth"))


@pytest.mark.filterwarnings("ignore")
def test_torchscript_archives_give_their_tensors(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.LayerNorm(4), nn.Conv2d(1, 2, 3))).half()
    network.register_buffer("scale", torch.tensor(2.0))
    network[0].weight = nn.Parameter(torch.randn(3, 4).half().T)
    torch.jit.save(torch.jit.script(network), tmp_path / "scripted.pt")
    read, expected = read_weights(tmp_path / "scripted.pt"), network.state_dict()
    assert read.keys() == expected.keys()
    assert all(torch.equal(read[name], expected[name]) for name in expected)
    data = (tmp_path / "scripted.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(data[: len(data) // 2])
    with pytest.raises(UnveilError, match=r"cut\.pt .*cut short"):
        read_weights(tmp_path / "cut.pt")


class Intruder:
    """Would create a file when an ordinary unpickler builds it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    trace = tmp_path / "was_run"
    torch.save({"model": WEIGHTS, "extra": Intruder(trace)}, tmp_path / "pickle.pt")
    with zipfile.ZipFile(tmp_path / "scripted.pt", "w") as archive:
        archive.writestr("scripted/data.pkl", pickle.dumps(Intruder(trace)))
        archive.writestr("scripted/constants.pkl", pickle.dumps(()))
    with pytest.raises(UnveilError, match="holds more than tensors"):
        read_weights(tmp_path / "pickle.pt")
    with pytest.raises(UnveilError, match="cannot be read for its weights alone"):
        read_weights(tmp_path / "scripted.pt")
    assert not trace.exists()


def bad_file(kind: str, folder: Path) -> Path:
    path = folder / f"weights.{'safetensors' if kind.startswith('safe') else 'pt'}"
    match kind:
        case "missing":
            return path
        case "empty":
            path.write_bytes(b"")
        case "text":
            path.write_text("this is not a checkpoint, it is a letter\n")
        case "html" | "safe_html":
            path.write_text("<!DOCTYPE html><title>404</title>")
        case "truncated" | "safe_truncated" | "old_truncated":
            whole = {"a": torch.ones(100, 100)}
            if kind == "safe_truncated":
                save_file(whole, path)
            else:
                torch.save(whole, path, _use_new_zipfile_serialization=kind == "truncated")
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        case "objects":
            torch.save({"model": WEIGHTS, "when": datetime.timedelta(1)}, path)
        case "no_tensors":
            torch.save({"epoch": 3, "loss": 0.5}, path)
        case "list":
            torch.save([1, 2, 3], path)
    return path


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("missing", "is not there"),
        ("empty", "is empty"),
        ("text", "is not a checkpoint"),
        ("html", "is not a checkpoint"),
        ("safe_html", "is not a whole safetensors file"),
        ("safe_truncated", "is not a whole safetensors file"),
        ("truncated", "cut short"),
        ("old_truncated", "cut short"),
        ("objects", "holds more than tensors"),
        ("no_tensors", "holds no tensors; it is a table of epoch, loss"),
        ("list", "holds no tensors; it is a list"),
    ],
)
def test_bad_files_get_a_sentence(kind: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UnveilError, match=sentence):
        read_weights(bad_file(kind, tmp_path))
