"""`unveil predict`, `embed` and `visualize`, and the page that explains them."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import unveil as package
from tests.api.runs import CLASSES, save_classifier, save_pretraining
from tests.flows.commands import Unveil, save_photo

PAGE = Path(__file__).parents[2] / "docs" / "using.md"
CPU = ("--device", "cpu", "--workers", 0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_classifier(tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="module")
def pretraining(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    return save_pretraining(tmp_path_factory.mktemp("pretraining"), photos, embedded=True)


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Five images that can be read, one of each unusual kind, and two that cannot."""
    folder = tmp_path / "mixed"
    for number in range(2):
        save_photo(folder / f"{number}.png", number)
    Image.new("CMYK", (40, 30), (0, 255, 255, 0)).save(folder / "cmyk.jpg")
    Image.fromarray(np.full((30, 40), 40000, dtype=np.uint16)).save(folder / "sixteen.png")
    frames = [Image.new("P", (30, 30), colour) for colour in (1, 2)]
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:])
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff but no more")
    (folder / "empty.png").touch()
    return folder


def test_predictions_as_lines_of_json(run: Path, mixed: Path, unveil: Unveil) -> None:
    answer = unveil("predict", run, mixed, "--format", "jsonl", "--top-k", 2, *CPU)
    assert answer.status == 0
    lines = [json.loads(line) for line in answer.out.splitlines()]
    assert [Path(line["file"]).name for line in lines] == ["0.png", "1.png", "animated.gif", "cmyk.jpg", "sixteen.png"]
    model = package.load(run, device="cpu")
    for line in lines:
        wanted = [{"label": label, "probability": p} for label, p in model.predict([line["file"]], top_k=2)[0]]
        assert [found["label"] for found in line["predictions"]] == [each["label"] for each in wanted]
        for found, each in zip(line["predictions"], wanted, strict=True):
            assert found["probability"] == pytest.approx(each["probability"], abs=1e-6)
    for name in ("broken.jpg", "empty.png"):
        assert f"warning: cannot read {mixed / name}" in answer.err
    assert "warning: 2 of 7 images could not be read and are left out" in answer.err


def test_predictions_as_table_and_csv(run: Path, photos: Path, tmp_path: Path, unveil: Unveil) -> None:
    table = unveil("predict", run, photos, "--top-k", 2, *CPU)
    assert table.status == 0 and len(table.out.splitlines()) == 30
    first = re.fullmatch(r"(\S.*\.jpg) +(\d+\.\d) % (.+?)  +(\d+\.\d) % (.+)", table.out.splitlines()[0])
    assert first is not None and {first[3].strip(), first[5].strip()} <= set(CLASSES)
    written = unveil("predict", run, photos, "--format", "csv", "--out", tmp_path / "p.csv", "--batch-size", 7, *CPU)
    assert written.status == 0 and written.out == ""
    with (tmp_path / "p.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 30 * 4 and {row["label"] for row in rows} == set(CLASSES)
    assert sum(float(row["probability"]) for row in rows) == pytest.approx(30.0, abs=1e-4)
    assert [row["rank"] for row in rows[:5]] == ["1", "2", "3", "4", "1"]
    assert f"{float(rows[0]['probability']):.1%}".replace("%", " %") == f"{first[2]} %"


def test_files_tars_and_patterns_go_together(run: Path, photos: Path, tmp_path: Path, unveil: Unveil) -> None:
    images = sorted(photos.rglob("*.jpg"))
    with tarfile.open(tmp_path / "some.tar", "w") as tar:
        for image in images[:3]:
            tar.add(image, image.name)
    pattern = str(images[0].parent / "00*.jpg")
    answer = unveil("predict", run, tmp_path / "some.tar", images[5], pattern, "--format", "jsonl", *CPU)
    assert answer.status == 0, answer.err
    matching = sum(image.parent == images[0].parent and image.name.startswith("00") for image in images)
    assert len(answer.out.splitlines()) == 3 + 1 + matching


def test_a_sheet_of_predictions(run: Path, photos: Path, tmp_path: Path, unveil: Unveil) -> None:
    answer = unveil("predict", run, photos, "--sheet", tmp_path / "sheet.png", *CPU)
    assert answer.status == 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.mode == "RGB" and min(sheet.size) > 1000
        # 30 images in 6 columns: 5 rows of cards of even width.
        assert sheet.width == 6 * 280 + 5 * 28 + 2 * 32
    assert not list(tmp_path.glob(".writing*"))


def test_predictions_that_cannot_be(
    run: Path, pretraining: Path, photos: Path, mixed: Path, tmp_path: Path, unveil: Unveil
) -> None:
    headless = unveil("predict", pretraining, photos, *CPU)
    assert (
        headless.status == 1 and "has no classification head; give it one first: unveil finetune" in headless.complaint
    )
    unreadable = unveil("predict", run, mixed / "broken.jpg", mixed / "empty.png", *CPU)
    assert unreadable.status == 1 and "2 of the 2 samples" in unreadable.complaint and unreadable.out == ""
    for arguments, complaint in (
        ((run,), "no images are given"),
        ((run, tmp_path / "nothing"), "nothing does not exist"),
        ((run, photos, "--top-k", 0), "--top-k is 0; give at least 1"),
        ((run, photos, "--batch-size", 0), "--batch-size is 0"),
        ((run, photos, "--workers", -1), "--workers is -1"),
        ((run, photos, "--sheet", tmp_path / "sheet.txt"), "must end in .png"),
        ((run, photos, "--out", tmp_path / "no" / "where.csv"), "lies in no folder that is there"),
        ((run, photos, "--device", "toaster"), "device 'toaster' cannot be used here"),
        ((tmp_path / "no_run", photos), "no_run does not exist"),
        ((photos, photos), "holds no checkpoint"),
    ):
        refused = unveil("predict", *arguments)
        assert refused.status == 1 and complaint in refused.complaint, refused.err


@pytest.mark.parametrize(("what", "shape"), [("mean", (48,)), ("cls", (48,)), ("patches", (16, 48))])
def test_embedding_is_what_the_model_says(
    what: str, shape: tuple[int, ...], pretraining: Path, mixed: Path, tmp_path: Path, unveil: Unveil
) -> None:
    out = tmp_path / "features.npz"
    answer = unveil("embed", pretraining, mixed, "--out", out, "--what", what, "--batch-size", 2, *CPU)
    assert answer.status == 0, answer.err
    assert answer.out == f"wrote {out}: {what}, {' x '.join(map(str, (5, *shape)))} float32\n"
    assert "2 of 7 images could not be read and are left out" in answer.err
    with np.load(out, allow_pickle=False) as table:
        names, features, notes = table["paths"].tolist(), table["features"], json.loads(str(table["notes"]))
    assert [Path(name).name for name in names] == ["0.png", "1.png", "animated.gif", "cmyk.jpg", "sixteen.png"]
    wanted = getattr(package.load(pretraining, device="cpu").features(names), what)
    torch.testing.assert_close(torch.from_numpy(features), wanted, atol=1e-5, rtol=1e-5)
    assert notes["what"] == what and notes["grid"] == [4, 4]
    assert not (tmp_path / "features.npz.parts").exists()


@pytest.mark.parametrize("what", ["mean", "patches"])
def test_embedding_as_parquet(
    what: str, run: Path, photos: Path, tmp_path: Path, unveil: Unveil, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    for name in ("a.parquet", "a.npz"):
        monkeypatch.setattr("unveil.build.embedding.PART_SECONDS", 0.0 if name == "a.parquet" else 30.0)
        monkeypatch.setattr(
            "unveil.build.embedding_file.ROW_GROUP_BYTES", 7 * 2 * 48 * (16 if what == "patches" else 1)
        )
        half = ("--half", "--what", what, "--batch-size", 4)
        assert unveil("embed", run, photos, "--out", tmp_path / name, *half, *CPU).status == 0
    file = parquet.ParquetFile(tmp_path / "a.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [7, 7, 7, 7, 2]
    table = file.read()
    with np.load(tmp_path / "a.npz", allow_pickle=False) as wanted:
        assert table["path"].to_pylist() == wanted["paths"].tolist()
        assert wanted["features"].dtype == np.float16
        np.testing.assert_array_equal(np.array(table["features"].to_pylist(), np.float16), wanted["features"])
    assert json.loads(table.schema.metadata[b"unveil"])["what"] == what


def test_a_killed_embedding_goes_on_to_the_same_file(run: Path, photos: Path, tmp_path: Path, unveil: Unveil) -> None:
    """Killed with parts done; the rest gives the very bytes of an embedding that ran through."""
    options = ("--batch-size", "4", "--device", "cpu", "--workers", "0")
    assert unveil("embed", run, photos, "--out", tmp_path / "whole.npz", *options).status == 0
    out = tmp_path / "killed.npz"
    slow = (
        "import time, unveil.api as api, unveil.build.embedding as embedding; embedding.PART_SECONDS = 0.0;"
        "fast = api.Model.features;"
        "api.Model.features = lambda *args, **options: (time.sleep(0.3), fast(*args, **options))[1];"
        "from unveil.cli.main import main; main()"
    )
    command = [sys.executable, "-c", slow, "embed", str(run), str(photos), "--out", str(out), *options]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    parts = tmp_path / "killed.npz.parts"
    deadline = time.monotonic() + 120
    while len(list(parts.glob("part_*.npz"))) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    before = {file.name: file.stat().st_mtime_ns for file in parts.glob("part_*.npz")}
    other = unveil("embed", run, photos, "--out", out, *options, "--what", "cls")
    assert other.status == 1 and "other settings (what was mean, is cls)" in other.complaint
    fewer = unveil("embed", run, next(photos.iterdir()), "--out", out, *options)
    assert fewer.status == 1 and "with other images" in fewer.complaint
    assert before == {file.name: file.stat().st_mtime_ns for file in parts.glob("part_*.npz")}
    assert unveil("embed", run, photos, "--out", out, *options).status == 0
    assert out.read_bytes() == (tmp_path / "whole.npz").read_bytes()
    assert not parts.exists()


def test_ctrl_c_keeps_the_parts(
    run: Path, photos: Path, tmp_path: Path, unveil: Unveil, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unveil.build.embedding.PART_SECONDS", 0.0)
    features, calls = package.Model.features, []

    def interrupted(*arguments: object, **options: object) -> object:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return features(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(package.Model, "features", interrupted)
        stopped = unveil("embed", run, photos, "--out", tmp_path / "a.npz", "--batch-size", 10, *CPU)
    assert stopped.status == 130 and "the same command goes on from there" in stopped.err
    assert len(list((tmp_path / "a.npz.parts").glob("part_*.npz"))) == 2
    damaged = tmp_path / "a.npz.parts" / "part_000001.npz"
    content = damaged.read_bytes()
    damaged.write_bytes(content[:100])
    torn = unveil("embed", run, photos, "--out", tmp_path / "a.npz", "--batch-size", 10, *CPU)
    assert torn.status == 1 and f"{damaged} is damaged" in torn.complaint
    damaged.unlink()
    assert unveil("embed", run, photos, "--out", tmp_path / "a.npz", "--batch-size", 10, *CPU).status == 0
    with np.load(tmp_path / "a.npz", allow_pickle=False) as table:
        assert table["features"].shape == (30, 48) and len(set(table["paths"].tolist())) == 30


def test_embeddings_that_cannot_be(
    run: Path, photos: Path, mixed: Path, tmp_path: Path, unveil: Unveil, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there.npz").write_text("mine")
    for out, complaint in (
        ("features.csv", "must end in .npz or .parquet"),
        ("there.npz", "is there already; give --overwrite"),
    ):
        refused = unveil("embed", run, photos, "--out", tmp_path / out, *CPU)
        assert refused.status == 1 and complaint in refused.complaint
    assert (tmp_path / "there.npz").read_text() == "mine"
    assert unveil("embed", run, photos, "--out", tmp_path / "there.npz", "--overwrite", *CPU).status == 0
    nothing = unveil("embed", run, mixed / "broken.jpg", "--out", tmp_path / "b.npz", *CPU)
    assert nothing.status == 1 and "1 of the 1 samples" in nothing.complaint and not (tmp_path / "b.npz").exists()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    missing = unveil("embed", run, photos, "--out", tmp_path / "a.parquet", *CPU)
    assert missing.status == 1 and 'pip install "unveil[parquet]"' in missing.complaint


def test_pictures_of_a_pretraining_run(pretraining: Path, photos: Path, tmp_path: Path, unveil: Unveil) -> None:
    files = sorted(photos.rglob("*.jpg"))[:2]
    for what, names in (
        ("attention", {f"attention_{file.stem}.png" for file in files}),
        ("pca", {"pca_of_2.png"}),
        ("similarity", {f"similarity_{file.stem}.png" for file in files}),
        ("masks", {f"masks_{file.stem}.png" for file in files}),
    ):
        out = tmp_path / what
        answer = unveil("visualize", pretraining, *files, "--what", what, "--out", out, "--device", "cpu")
        assert answer.status == 0, answer.err
        assert {file.name for file in out.iterdir()} == names
        for file in out.iterdir():
            with Image.open(file) as picture:
                pixels = np.asarray(picture)
            assert min(picture.size) > 300 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


def test_pictures_of_a_classifier(run: Path, photos: Path, mixed: Path, tmp_path: Path, unveil: Unveil) -> None:
    device = ("--device", "cpu", "--out", tmp_path / "pictures")
    photo = next(photos.rglob("*.jpg"))
    fine = unveil("visualize", run, photo, "--what", "similarity", "--patch", "7,3", "--image-size", 56, *device)
    assert fine.status == 0, fine.err
    # Two images of one name, and two that cannot be read.
    twice = unveil("visualize", run, photo, photo, mixed, "--what", "attention", "--block", 0, *device)
    assert twice.status == 0 and "cannot read" in twice.err
    assert {f"attention_{photo.stem}.png", f"attention_{photo.stem}_2.png"} <= {
        file.name for file in (tmp_path / "pictures").iterdir()
    }
    for arguments, complaint in (
        ((photo, "--what", "masks"), "--what masks needs the folder of a pre-training run"),
        ((photo, "--what", "similarity", "--patch", "4,0"), "on the grid of 4 x 4 patches"),
        ((photo, "--what", "similarity", "--patch", "middle"), "give ROW,COLUMN"),
        ((photo, "--block", 2), "the model has blocks 0 to 1"),
        ((photo, "--image-size", 30), "does not divide into the model's patches of 7 pixels; try 28"),
        ((mixed / "broken.jpg",), "none of 1 images can be read"),
        ((), "no images are given"),
    ):
        refused = unveil("visualize", run, *arguments, "--device", "cpu", "--out", tmp_path / "none")
        assert refused.status == 1 and complaint in refused.complaint, refused.err
    assert not (tmp_path / "none").exists()


def test_similarity_says_when_the_runs_images_are_gone(tmp_path: Path, photos: Path, unveil: Unveil) -> None:
    run = save_pretraining(tmp_path / "run", tmp_path / "gone", embedded=True)
    photo = next(photos.rglob("*.jpg"))
    answer = unveil("visualize", run, photo, "--what", "similarity", "--out", tmp_path / "out", "--device", "cpu")
    assert answer.status == 0 and "the teacher takes its mean feature from those given" in answer.err


def test_help_is_short_has_an_example_and_needs_no_torch(unveil: Unveil) -> None:
    for command in ("predict", "embed", "visualize"):
        shown = unveil(command, "--help")
        assert shown.status == 0 and len(shown.out.splitlines()) <= 50
        assert f"Example: unveil {command} " in shown.out
    program = (
        "import contextlib, io, sys; from unveil.cli.main import main\n"
        "for command in ('predict', 'embed', 'visualize'):\n"
        "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "        main([command, '--help'])\n"
        "print({'torch', 'numpy', 'PIL', 'matplotlib', 'timm'} & set(sys.modules))"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert answer.stdout.strip() == "set()"


def test_the_pages_python_runs(photos: Path, tmp_path: Path, unveil: Unveil, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every Python block of docs/using.md, in order, in a folder with the run and the photos that it speaks of."""
    monkeypatch.chdir(tmp_path)
    save_classifier(tmp_path / "runs" / "flowers")
    save_photo(tmp_path / "photos" / "cat.jpg", 0)
    save_photo(tmp_path / "photos" / "dog.jpg", 1)
    assert unveil("embed", "runs/flowers", "photos/", "--out", "photos.npz").status == 0
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 5
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert names["same"] is True
    assert names["table"]["paths"].tolist() == ["photos/cat.jpg", "photos/dog.jpg"]
    assert names["features"].mean.shape == (2, 48)
