"""`unveil probe`: from sample data and weights to numbers, files and a model for the other commands."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.distributed.processes import together
from tests.flows.commands import Answer, Unveil, command_here, save_photo
from unveil.cli.main import main
from unveil.config import ViTConfig
from unveil.config.serialize import to_json
from unveil.models.vit import ViT
from unveil.weights.write import notes, write_weights

TINY = ViTConfig(image_size=16, patch_size=4, width=32, depth=1, heads=2, mlp_width=64, init_std=0.2)
QUICK = ("--workers", 0, "--set", "engine.trackers=", "--set", "engine.precision=fp32")
LINEAR = ("--method", "linear", "--steps", 30, "--global-batch-size", 32)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    state = {f"backbone.{name}": value for name, value in ViT(TINY, mask_token=True).state_dict().items()}
    file = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    known = {"model": to_json(TINY), "normalization": "imagenet"}
    write_weights(file, state, notes(known, layout="native", source=Path("nowhere")))
    return file


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample") / "scenes"
    with pytest.raises(SystemExit):
        main(["sample-data", str(folder), "--train", "60", "--test", "30", "--size", "20"])
    return folder


def test_the_whole_way(unveil: Unveil, scenes: Path, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "probe"
    shown = unveil("probe", scenes, "--model", weights, "--out", out, "--method", "lbfgs", "knn", "linear", *QUICK)
    assert shown.status == 0, shown.err
    report = json.loads((out / "report.json").read_text())
    assert list(report["methods"]) == ["lbfgs", "knn", "linear"] and report["normalization"] == "imagenet"
    table = {line.split()[0]: line for line in shown.out.splitlines() if line.split()[:1] and "%" in line}
    for method, found in report["methods"].items():
        assert f"{100 * found['top1']:.2f} %" in table[method] and f"{100 * found['top5']:.2f} %" in table[method]
        assert f"{100 * found['calibration_error']:.2f} %" in table[method]
        assert found["images"] == 30 and len(found["per_class"]) == 10
    assert "hardest: " in shown.out and "easiest: " in shown.out and "are taken for" in shown.out
    assert "features of the training images: 60 of 60" in shown.err
    assert (out / "confusion.png").stat().st_size > 10_000
    # What it leaves behind is a model like any other.
    judged = unveil("eval", out, scenes / "test", "--out", tmp_path / "eval", "--device", "cpu", "--workers", 0)
    assert judged.status == 0, judged.err
    evaluated = json.loads((tmp_path / "eval/report.json").read_text())
    assert evaluated["top1"] == report["methods"]["lbfgs"]["top1"]
    photo = next((scenes / "test").rglob("*.png"))
    predicted = unveil("predict", out, photo, "--format", "jsonl", "--device", "cpu")
    assert len(json.loads(predicted.out)["predictions"]) == 5


def test_dry_run_says_what_would_happen(unveil: Unveil, scenes: Path, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "probe"
    shown = unveil(
        *("probe", scenes, "--model", weights, "--out", out, "--dry-run", "--labels", 20, "--draws", 2, *LINEAR),
        *("--set", "data.crop=CenterCrop", *QUICK),
    )
    assert shown.status == 0 and not out.exists(), shown.err
    for words in (
        "60, about 20 x 20 px",
        "30, about 20 x 20 px",
        "20, evenly from all classes, drawn 2 times",
        "ViT 32 wide, 1 deep",
        "mean of the patches, 32 numbers an image",
        "computed once, those of the mirror images too",
        "30 steps = 48.00 passes",
    ):
        assert words in shown.out, words


def test_a_recipe_that_is_named_is_the_linear_probe_at_its_size(
    unveil: Unveil, scenes: Path, weights: Path, tmp_path: Path
) -> None:
    arguments = ("probe", scenes, "--model", weights, "--recipe", "eva_clip_probe_224", "--dry-run", *QUICK)
    shown = unveil(*arguments, "--global-batch-size", 30)
    assert shown.status == 0, shown.err
    assert "224 px in 56 x 56 patches of 4 px" in shown.out
    assert any(line.split() == ["methods", "linear"] for line in shown.out.splitlines())
    assert "cls token" in shown.out and "of random crops, computed anew at each step" in shown.out


def test_the_same_command_gives_the_same_again(unveil: Unveil, scenes: Path, weights: Path, tmp_path: Path) -> None:
    arguments = ("probe", scenes, "--model", weights, "--out", tmp_path / "probe", *LINEAR, *QUICK)
    first = unveil(*arguments)
    report = (tmp_path / "probe/report.json").read_text()
    again = unveil(*arguments)
    assert first.status == again.status == 0, again.err
    assert (tmp_path / "probe/report.json").read_text() == report
    assert "going on after step 30" in again.err
    changed = unveil(*arguments, "--seed", 5)
    assert changed.status == 1 and "engine.seed: 0 in the run, 5 asked" in changed.complaint


def test_two_processes(scenes: Path, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "probe"
    arguments = ("probe", scenes, "--model", weights, "--out", out, "--method", "linear", "knn", "--steps", 3, *QUICK)
    assert together(2, command_here, *map(str, arguments)) == [0, 0]
    assert json.loads((out / "report.json").read_text())["methods"]["knn"]["images"] == 30


@pytest.fixture
def refuse(unveil: Unveil, weights: Path, tmp_path: Path) -> Unveil:
    """Runs a probe that must be refused, and leave nothing behind."""

    def run(*arguments: object) -> Answer:
        model = () if "--model" in arguments else ("--model", weights)
        answer = unveil("probe", *arguments, *model, "--out", tmp_path / "refused", *QUICK)
        assert answer.status == 1
        assert not (tmp_path / "refused").exists()
        return answer

    return run


def test_data_that_will_not_do(refuse: Unveil, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert f"{empty} holds no image" in refuse(empty).complaint
    assert (
        "not there" in refuse(tmp_path / "nowhere").complaint or "does not exist" in refuse(tmp_path / "no").complaint
    )
    bare = tmp_path / "bare"
    for number in range(6):
        save_photo(bare / f"{number}.png", number)
    assert "one folder for each class" in refuse(bare).complaint
    one = tmp_path / "one"
    for number in range(10):
        save_photo(one / "cats" / f"{number}.png", number)
    assert "two classes or more, and only 'cats' is there" in refuse(one).complaint
    few = tmp_path / "few"
    for name in ("cats", "dogs"):
        save_photo(few / name / "1.png", 1)
    assert "too few to hold a fifth out" in refuse(few).complaint
    for number in range(4):
        save_photo(tmp_path / "birds" / "owls" / f"{number}.png", number)
    strange = refuse(one, "--validation", tmp_path / "birds").complaint
    assert "'owls'" in strange and "same class names" in strange


def test_options_that_will_not_do(refuse: Unveil, unveil: Unveil, scenes: Path, tmp_path: Path) -> None:
    none = unveil("probe", scenes)
    assert none.status == 1 and "give --model" in none.complaint
    assert "only 60 training images" in refuse(scenes, "--labels", 61).complaint
    assert "give labels, too" in refuse(scenes, "--draws", 3).complaint
    assert "its weights tell the rest" in refuse(scenes, "--set", "model.depth=3").complaint
    assert "--steps is 0" in refuse(scenes, "--steps", 0).complaint
    assert "each once" in refuse(scenes, "--method", "knn", "knn").complaint
    assert "no recipe is called 'probe_smal'" in refuse(scenes, "--recipe", "probe_smal").complaint
    wrong = tmp_path / "wrong.safetensors"
    save_file({"fc.weight": torch.zeros(2, 2)}, wrong)
    assert "wrong.safetensors" in refuse(scenes, "--model", wrong).complaint
    assert unveil("probe", scenes, "--method", "svm").status == 2


def test_classes_that_validation_lacks_are_named(unveil: Unveil, scenes: Path, weights: Path, tmp_path: Path) -> None:
    part = tmp_path / "part"
    for number, photo in enumerate(sorted((scenes / "test/bag").iterdir())):
        (part / "bag").mkdir(parents=True, exist_ok=True)
        (part / "bag" / f"{number}.png").write_bytes(photo.read_bytes())
    out = tmp_path / "out"
    shown = unveil("probe", scenes / "train", "--validation", part, "--model", weights, "--out", out, *QUICK)
    assert shown.status == 0 and "no image of 9 of the 10 classes" in shown.err
    classes = json.loads((out / "report.json").read_text())["methods"]["knn"]["per_class"]
    assert [name for name, found in classes.items() if found["accuracy"] is not None] == ["bag"]


def test_help_fits_a_screen(unveil: Unveil, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    shown = unveil("probe", "--help")
    assert shown.status == 0 and len(shown.out.splitlines()) <= 50
    assert "Example: unveil probe" in shown.out
