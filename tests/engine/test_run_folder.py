import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.processes import CONTEXT, start
from tests.engine.toy import CPU
from unveil.config import AdamWConfig, UnveilError
from unveil.config.serialize import to_json
from unveil.engine import RunFolder

CONFIG = {"recipe": "toy", "optimization": {"optimizer": to_json(AdamWConfig()), "steps": 10}, "data": {"workers": 1}}
DATA = {"order": "feistel", "parts": {"photos": {"count": 3, "sha256": "aa"}, "a.tar": {"count": 5, "sha256": "bb"}}}


def reopen(path: Path, config: dict[str, Any] = CONFIG, data: dict[str, Any] = DATA, **changes: Any) -> RunFolder:
    return RunFolder.open(path, config=config, data=data, parallel=CPU, **changes)


def with_changes(value: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**value, **changes}


def test_a_run_describes_itself_and_is_reopened(tmp_path: Path) -> None:
    path = tmp_path / "new" / "run"
    with reopen(path) as run:
        assert run.config() == CONFIG
        logging.getLogger("unveil.somewhere").warning("photo 3 is broken")
    assert {"config.json", "data.json", "environment.json", "log.txt"} <= {entry.name for entry in path.iterdir()}
    assert torch.__version__ in (path / "environment.json").read_text()
    assert "photo 3 is broken" in (path / "log.txt").read_text()
    (path / "checkpoints" / ".writing_step_00000007").mkdir(parents=True)
    with reopen(path):
        assert list((path / "checkpoints").iterdir()) == []
    assert logging.getLogger("unveil").handlers == []


def test_another_configuration_is_refused_by_the_names_that_differ(tmp_path: Path) -> None:
    reopen(tmp_path).close()
    other = {"optimizer": to_json(AdamWConfig(learning_rate=0.002)), "steps": 10}
    with pytest.raises(UnveilError, match=r"optimization\.optimizer\.learning_rate: 0\.001 in the run, 0\.002 asked"):
        reopen(tmp_path, with_changes(CONFIG, optimization=other))
    with pytest.raises(UnveilError, match=r'data\.crop: nothing in the run, "random" asked.*--out'):
        reopen(tmp_path, with_changes(CONFIG, data={"workers": 1, "crop": "random"}))


def test_a_setting_that_came_into_being_later_had_its_usual_value(tmp_path: Path) -> None:
    reopen(tmp_path).close()
    usual = {"data.crop": "center", "target.size": 3}
    reopen(tmp_path, with_changes(CONFIG, data={"workers": 1, "crop": "center"}), usual=usual).close()
    with pytest.raises(UnveilError, match=r'data\.crop: "center" in the run, "random" asked'):
        reopen(tmp_path, with_changes(CONFIG, data={"workers": 1, "crop": "random"}), usual=usual)


def test_some_names_may_change(tmp_path: Path) -> None:
    reopen(tmp_path).close()
    changed = with_changes(CONFIG, data={"workers": 8})
    reopen(tmp_path, changed, allowed_changes={"data.workers"}).close()
    reopen(tmp_path, changed, allowed_changes={"data"}).close()
    with pytest.raises(UnveilError, match=r"data\.workers"):
        reopen(tmp_path, changed, allowed_changes={"data.work", "optimization"})


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"photos": {"count": 3, "sha256": "aa"}}, r"a\.tar \(5 samples\) is gone"),
        (DATA["parts"] | {"b.tar": {"count": 2, "sha256": "cc"}}, r"b\.tar \(2 samples\) is new"),
        (DATA["parts"] | {"photos": {"count": 4, "sha256": "ac"}}, r"photos had 3 samples and has 4: 1 more"),
        (
            DATA["parts"] | {"photos": {"count": 3, "sha256": "ac"}},
            r"photos had 3 samples and has 3: as many, but others",
        ),
        (dict(reversed(DATA["parts"].items())), "another order"),
    ],
)
def test_other_data_is_refused_by_what_changed(tmp_path: Path, parts: dict[str, Any], message: str) -> None:
    reopen(tmp_path).close()
    with pytest.raises(UnveilError, match=message):
        reopen(tmp_path, data=with_changes(DATA, parts=parts))


def test_data_may_move(tmp_path: Path) -> None:
    reopen(tmp_path).close()
    reopen(
        tmp_path, data=with_changes(DATA, parts={f"/new/{name}": part for name, part in DATA["parts"].items()})
    ).close()


def test_somebody_elses_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UnveilError, match=r"thesis\.tex.*--out"):
        reopen(tmp_path)
    with pytest.raises(UnveilError, match="is a file"):
        reopen(tmp_path / "thesis.tex")
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_run_killed_while_it_was_made_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("process 1 on this machine")
    (tmp_path / "data.json").write_text("{}")
    (tmp_path / ".config.json.writing").write_text("{")
    reopen(tmp_path).close()
    reopen(tmp_path).close()


def test_a_description_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    reopen(tmp_path).close()
    (tmp_path / "config.json").write_text('{"recipe"')
    with pytest.raises(UnveilError, match=r"config\.json cannot be read"):
        reopen(tmp_path)


def hold(path: Path, ready: Any) -> None:
    with reopen(path):
        ready.set()
        ready.wait_for_ever = CONTEXT.Event()
        ready.wait_for_ever.wait()


def test_a_second_process_is_refused_until_the_first_is_dead(tmp_path: Path) -> None:
    ready = CONTEXT.Event()
    holder = start(hold, tmp_path, ready)
    assert ready.wait(60)
    with pytest.raises(UnveilError, match=f"process {holder.pid} on"):
        reopen(tmp_path)
    holder.kill()
    holder.join()
    reopen(tmp_path).close()
