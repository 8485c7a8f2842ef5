import errno
import json
import logging
import os
import resource
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.processes import start
from unveil.config import UnveilError
from unveil.engine import CheckpointFolder


def contents(value: float, size: int = 10) -> dict[str, Any]:
    return {
        "weights": {"w": torch.full((size,), value)},
        "training": {"progress": {"step": int(value)}},
        "optimizer": {"w/exp_avg": torch.full((size,), value), "w/step": torch.tensor(value)},
    }


def test_what_is_saved_comes_back_and_older_ones_go(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "checkpoints", keep_last=2)
    assert folder.load_latest() is None
    for step in (1, 2, 3):
        folder.save(step, **contents(step))
    assert sorted(path.name for path in folder.path.iterdir()) == ["step_00000002", "step_00000003"]
    checkpoint = folder.load_latest()
    assert checkpoint is not None
    assert checkpoint.step == 3
    assert torch.equal(checkpoint.weights["w"], torch.full((10,), 3.0))
    assert torch.equal(checkpoint.optimizer["w/exp_avg"], torch.full((10,), 3.0))
    # Readable without this package.
    assert load_file(folder.folder(3) / "model.safetensors").keys() == {"w"}
    manifest = json.loads((folder.folder(3) / "manifest.json").read_text())
    for name, entry in manifest["files"].items():
        assert entry["bytes"] == (folder.folder(3) / name).stat().st_size


def shorten(path: Path) -> None:
    with path.open("rb+") as file:
        file.truncate(path.stat().st_size // 2)


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [shorten, flip_a_bit, Path.unlink])
@pytest.mark.parametrize("file", ["model.safetensors", "optimizer_00000.safetensors", "training.json", "manifest.json"])
def test_a_torn_checkpoint_is_named_and_the_one_before_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Any, file: str
) -> None:
    if damage is flip_a_bit and file == "manifest.json":
        damage = shorten
    folder = CheckpointFolder(tmp_path)
    folder.save(1, **contents(1))
    folder.save(2, **contents(2))
    damage(folder.folder(2) / file)
    with caplog.at_level(logging.WARNING):
        checkpoint = folder.load_latest()
    assert checkpoint is not None
    assert checkpoint.step == 1
    assert "step_00000002" in caplog.text
    assert file in caplog.text
    # The run goes on and overtakes the torn one.
    folder.save(2, **contents(20))
    again = folder.load_latest()
    assert again is not None
    assert again.weights["w"][0] == 20


def test_averaged_weights_lie_beside_the_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = CheckpointFolder(tmp_path)
    folder.save(1, **contents(1), averaged={"w": torch.full((10,), 0.5)})
    folder.save(2, **contents(1), averaged={"w": torch.full((10,), 0.7)})
    checkpoint = folder.load(2)
    assert checkpoint.averaged is not None
    assert torch.equal(checkpoint.averaged["w"], torch.full((10,), 0.7))
    assert torch.equal(checkpoint.weights["w"], torch.ones(10))
    file = folder.folder(2) / "model_ema.safetensors"
    assert load_file(file).keys() == {"w"}
    for damage in (flip_a_bit, shorten, Path.unlink):
        caplog.clear()
        damage(file)
        assert folder.latest_whole() == 1
        assert "model_ema.safetensors" in caplog.text
    folder.save(3, **contents(3))
    assert folder.load(3).averaged is None


def test_a_torn_checkpoint_ahead_goes_when_the_next_is_saved(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    folder.save(1, **contents(1))
    folder.save(4, **contents(4))
    shorten(folder.folder(4) / "training.json")
    folder.save(2, **contents(2))
    assert folder.steps() == [1, 2]


def test_if_all_are_torn_a_person_decides(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    folder.save(1, **contents(1))
    shorten(folder.folder(1) / "training.json")
    with pytest.raises(UnveilError, match="whole"):
        folder.load_latest()


def test_what_another_version_has_written_is_not_taken_for_torn(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    folder.save(1, **contents(1))
    manifest = folder.folder(1) / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 3', '"format": 2'))
    with pytest.raises(UnveilError, match="another version of unveil.*--init-from"):
        folder.load_latest()


def test_left_overs_of_a_killed_writer_are_swept(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    folder.save(1, **contents(1))
    (tmp_path / ".writing_step_00000002").mkdir()
    (tmp_path / ".writing_step_00000002" / "model.safetensors").write_bytes(b"half")
    assert folder.steps() == [1]
    folder.sweep()
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_no_space_at_fsync_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    folder = CheckpointFolder(tmp_path)
    folder.save(1, **contents(1))

    def full(descriptor: int) -> None:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UnveilError, match=r"no space.*step_00000002/model.safetensors.*step 1 is intact.*same command"):
        folder.save(2, **contents(2))
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]


def test_a_disk_that_refuses_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*_: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "replace", read_only)
    with pytest.raises(UnveilError, match=r"Read-only.*There is no earlier one"):
        CheckpointFolder(tmp_path).save(1, **contents(1))


def test_a_folder_that_not_all_processes_see_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a second machine: what the first process has made is not there."""
    monkeypatch.setattr(Path, "exists", lambda path: False)
    with pytest.raises(UnveilError, match="process 0 has a part.*a folder that all machines share"):
        CheckpointFolder(tmp_path).save(1, **contents(1))


def save_with_a_file_limit(path: Path, large: str) -> None:
    folder = CheckpointFolder(path)
    folder.save(1, **contents(1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    small, big = contents(2), contents(2, size=100_000)
    part = "weights" if large == "model.safetensors" else "optimizer"
    try:
        folder.save(2, **small | {part: big[part]})
    except UnveilError as error:
        (path / "message").write_text(str(error))


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors"])
def test_no_space_in_the_middle_of_a_file(tmp_path: Path, file: str) -> None:
    """A limit on the size of files is the full disk that needs no rights to make."""
    process = start(save_with_a_file_limit, tmp_path, file)
    process.join(60)
    assert process.exitcode == 0
    message = (tmp_path / "message").read_text()
    assert f"no space left while writing step_00000002/{file}" in message
    assert "needs about" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["message", "step_00000001"]
    checkpoint = CheckpointFolder(tmp_path).load_latest()
    assert checkpoint is not None
    assert checkpoint.step == 1
