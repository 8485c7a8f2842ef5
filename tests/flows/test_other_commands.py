"""`unveil`, `unveil recipes` and `unveil sample-data` from the command line."""

import csv
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.flows.commands import Unveil, start
from unveil.config import PretrainConfig
from unveil.config.serialize import from_json
from unveil.recipes import PRETRAINING
from unveil.recipes.eva_pretraining import eva_giant

WITHOUT_TORCH = """
import contextlib, io, sys
from unveil.cli.main import main
for arguments in (["--help"], ["pretrain", "--help"], ["recipes"], ["recipes", "eva_giant"]):
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        main(arguments)
print(sorted({"torch", "numpy", "timm", "PIL"} & set(sys.modules)))
"""


def test_help_and_recipes_import_nothing_heavy() -> None:
    answer = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True, timeout=60, check=True
    )
    assert answer.stdout.strip() == "[]"


def test_help_fits_a_screen_and_shows_an_example(unveil: Unveil) -> None:
    for command in ((), ("pretrain",), ("quickstart",), ("recipes",), ("sample-data",)):
        shown = unveil(*command, "--help")
        assert shown.status == 0
        assert len(shown.out.splitlines()) <= 50
        assert f"unveil {' '.join(command or ('pretrain',))} " in shown.out.split("options")[0]


def test_recipes_lists_them_all_and_prints_one_in_full(unveil: Unveil) -> None:
    listed = unveil("recipes").out
    for recipe in PRETRAINING:
        assert f"\n{recipe.__name__} " in f"\n{listed}"
    shown = unveil("recipes", "eva_giant").out
    docstring, brace, rest = shown.partition("{\n")
    assert "paper Table 3 (a, c, d)" in docstring.splitlines()[0] and "128 A100" in docstring
    assert from_json(PretrainConfig, json.loads(brace + rest)) == eva_giant()
    unknown = unveil("recipes", "eva_gigant")
    assert unknown.status == 1
    assert "perhaps you meant eva_giant" in unknown.complaint


@pytest.mark.parametrize("kind", ["folders", "coco", "masks", "captions", "video"])
def test_sample_data_in_every_format(kind: str, tmp_path: Path, unveil: Unveil) -> None:
    if kind == "video":
        pytest.importorskip("av")
    out = tmp_path / "scenes"
    command = ("sample-data", out, "--as", kind, "--train", 6, "--test", 2, "--frames", 4)
    written = unveil(*command)
    assert written.status == 0, written.err
    size = 64 if kind in ("folders", "video") else 224
    assert written.out == f"6 training and 2 test scenes of {size} px as {kind} in {out}\n"
    match kind:
        case "folders":
            assert len(list(out.glob("train/*/*.png"))) == 6
        case "coco":
            annotations = json.loads((out / "annotations/instances_train.json").read_text())
            assert len(annotations["images"]) == 6 and len(annotations["annotations"]) >= 6
        case "masks":
            assert len(list(out.glob("masks/test/*.png"))) == 2
        case "captions":
            with tarfile.open(next(out.glob("tars/train-*.tar"))) as tar:
                assert len(tar.getnames()) == 18
            with (out / "files/test/captions.csv").open() as file:
                assert len(list(csv.reader(file))) == 3
        case "video":
            assert len(list(out.glob("train/*/*.mp4"))) == 6
    before = sorted(out.rglob("*"))
    again = unveil(*command)
    assert again.status == 1
    assert f"{out} is not empty" in again.complaint
    assert sorted(out.rglob("*")) == before


def test_sample_data_in_sizes_of_ones_own(tmp_path: Path, unveil: Unveil) -> None:
    chosen = ("--train", 7, "--size", 40, "--garments", 2)
    assert unveil("sample-data", tmp_path / "scenes", *chosen).out.startswith("7 training and 1 test scenes of 40 px")
    for option in ("--train", "--size", "--garments"):
        refused = unveil("sample-data", tmp_path / "other", option, 0)
        assert refused.complaint == f"unveil: {option} is 0; give at least 1"
    assert not (tmp_path / "other").exists()


def test_what_is_written_can_be_trained_on(tmp_path: Path, unveil: Unveil) -> None:
    unveil("sample-data", tmp_path / "scenes", "--as", "captions", "--train", 9, "--size", 32)
    quick = ("--recipe", "tiny_cpu", "--teacher", "pixels", "--workers", 0, "--set", "engine.trackers=", "--steps", 1)
    trained = unveil("pretrain", tmp_path / "scenes/tars", "--out", tmp_path / "run", *quick)
    assert trained.status == 0, trained.err
    assert "images      10, about 32 x 32 px" in trained.out


@pytest.mark.parametrize("command", [("recipes",), ("recipes", "eva_giant"), ("plan", "eva_giant", "--gpus", "8")])
def test_whoever_reads_the_output_may_stop(command: tuple[str, ...]) -> None:
    """As head does: no traceback, and the status that a shell gives to SIGPIPE."""
    process = start(*command)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(60) == 141
