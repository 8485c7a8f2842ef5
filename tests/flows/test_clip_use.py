"""A CLIP in use: `unveil predict --labels`, `unveil embed --what clip` and `unveil clip search`."""

import csv
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

import unveil as package
from tests.flows.commands import Unveil, save_photo
from tests.tasks.embedders import ColourEmbedder, save_colour

PAGE = Path(__file__).parents[2] / "docs" / "clip.md"
CPU = ("--device", "cpu", "--workers", 0)
COUNTS = {"red": 4, "green": 3, "blue": 2}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "unveil"


@pytest.fixture
def colours(monkeypatch: pytest.MonkeyPatch) -> Iterator[ColourEmbedder]:
    """Every CLIP that is asked for is the one that knows colours."""
    embedder = ColourEmbedder()

    def load_clip(name: str, **options: Any) -> ColourEmbedder:
        return embedder

    monkeypatch.setattr("unveil.build.clip_models.load_clip", load_clip)
    return embedder


@pytest.fixture
def flags(tmp_path: Path) -> Path:
    folder = tmp_path / "flags"
    for colour, count in COUNTS.items():
        (folder / colour).mkdir(parents=True)
        for number in range(count):
            save_colour(folder / colour / f"{number}.png", colour, number)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff but no more")
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of weights as open_clip has them, at random."""
    torch.manual_seed(0)
    tower = {"width": 64, "layers": 1}
    network = open_clip.model.CLIP(
        16,
        {"image_size": 16, "patch_size": 8, "head_width": 64, **tower},
        {"context_length": 77, "vocab_size": 49408, "heads": 1, **tower},
    )
    file = tmp_path_factory.mktemp("clip") / "tiny.pt"
    torch.save(network.state_dict(), file)
    return file


def test_predictions_among_labels(colours: ColourEmbedder, flags: Path, tmp_path: Path, unveil: Unveil) -> None:
    answer = unveil("predict", "any", flags, "--labels", "something red,something green, blue", "--format", "csv", *CPU)
    assert answer.status == 0, answer.err
    rows = list(csv.DictReader(answer.out.splitlines()))
    assert len(rows) == 9 * 3 and "1 of 10 images could not be read" in answer.err
    for row in rows[::3]:
        assert row["rank"] == "1" and row["label"].split()[-1] == Path(row["file"]).parent.name
    assert sum(float(row["probability"]) for row in rows) == pytest.approx(9.0)
    # The names stand in sentences, and in a file.
    (tmp_path / "names.txt").write_text("red\ngreen\nblue\n")
    (tmp_path / "sentences.txt").write_text("a {} flag\nwhat is {}\n")
    lists = ("--labels", tmp_path / "names.txt", "--templates", tmp_path / "sentences.txt")
    before = colours.texts
    sheet = tmp_path / "sheet.png"
    again = unveil("predict", "any", flags, *lists, "--format", "jsonl", "--top-k", 1, "--sheet", sheet, *CPU)
    assert again.status == 0 and colours.texts == before + 6 and sheet.is_file()
    for line in map(json.loads, again.out.splitlines()):
        assert [found["label"] for found in line["predictions"]] == [Path(line["file"]).parent.name]


def test_a_large_classifier_is_built_once(colours: ColourEmbedder, flags: Path, cache: Path, unveil: Unveil) -> None:
    command = ("predict", "any", flags, "--labels", "red,green,blue,white", "--templates", "imagenet", *CPU)
    first = unveil(*command)
    assert first.status == 0 and colours.texts == 4 * 80 and len(list((cache / "zero_shot").iterdir())) == 1
    again = unveil(*command)
    assert again.out == first.out and colours.texts == 4 * 80
    assert "zero-shot classifier of 4 classes from" in again.err


def test_labels_that_cannot_be(colours: ColourEmbedder, flags: Path, tmp_path: Path, unveil: Unveil) -> None:
    (tmp_path / "no_blank.txt").write_text("a photo\n")
    for options, complaint in (
        (("--labels", "cat"), "is one name only"),
        (("--labels", "a,b,a"), "names 'a' twice"),
        (("--labels", "a,b", "--templates", tmp_path / "no_blank.txt"), "has no {} for the name"),
        (("--templates", "imagenet"), "--templates are sentences for --labels"),
    ):
        refused = unveil("predict", "any", flags, *options, *CPU)
        assert refused.status == 1 and complaint in refused.complaint
    assert colours.images == 0
    long = unveil("predict", "any", flags, "--labels", f"{'red ' * 90},green", *CPU)
    assert long.status == 0 and "warning: 1 of 2 texts are longer than the 77 tokens" in long.err


def test_search_finds_colours_and_looks_once(
    colours: ColourEmbedder, flags: Path, tmp_path: Path, cache: Path, unveil: Unveil
) -> None:
    sheet = tmp_path / "found.png"
    first = unveil("clip", "search", flags, "a red flag", "--model", "any", "--top-k", 4, "--sheet", sheet, *CPU)
    assert first.status == 0, first.err
    lines = [line.split() for line in first.out.splitlines()]
    assert [(rank, Path(name).parent.name) for rank, _, name in lines] == [(str(k), "red") for k in (1, 2, 3, 4)]
    scores = [float(score) for _, score, _ in lines]
    assert scores == sorted(scores, reverse=True) and scores[-1] > 0.9
    assert "searched 9 images, 9 of them new" in first.err and "1 of 10 images could not be read" in first.err
    with Image.open(sheet) as picture:
        pixels = np.asarray(picture).astype(int)
    assert ((pixels[..., 0] > 180) & (pixels[..., 1] < 60) & (pixels[..., 2] < 60)).sum() > 4 * 200 * 200
    assert colours.images == 9 and len(list((cache / "search").iterdir())) == 1
    # Another text, one new image: only that one is looked at.
    save_colour(flags / "new.png", "blue", 9)
    second = unveil("clip", "search", flags, "blue", "--model", "any", "--format", "jsonl", *CPU)
    assert second.status == 0 and "searched 10 images, 1 of them new" in second.err and colours.images == 10
    found = [json.loads(line) for line in second.out.splitlines()]
    assert len(found) == 10 and {Path(hit["file"]).name for hit in found[:3]} == {"0.png", "1.png", "new.png"}
    assert found[2]["score"] > 0.9 > found[3]["score"]


@pytest.mark.parametrize("form", ["npz", "parquet"])
def test_search_in_saved_embeddings(
    form: str, colours: ColourEmbedder, flags: Path, tmp_path: Path, unveil: Unveil, monkeypatch: pytest.MonkeyPatch
) -> None:
    if form == "parquet":
        pytest.importorskip("pyarrow")
    out = tmp_path / f"flags.{form}"
    written = unveil("embed", "any", flags, "--what", "clip", "--out", out, *CPU)
    assert written.status == 0, written.err
    assert written.out == f"wrote {out}: clip, 9 x 3 float32\n"
    sheet = tmp_path / "found.png"
    answer = unveil("clip", "search", out, "green", "--model", "any", "--top-k", 3, "--sheet", sheet, *CPU)
    assert answer.status == 0, answer.err
    assert [Path(line.split()[-1]).parent.name for line in answer.out.splitlines()] == ["green"] * 3
    assert colours.images == 9 and sheet.is_file() and "searched 9 images\n" in answer.err
    folder = unveil("clip", "search", flags, "green", "--model", "any", "--top-k", 3, *CPU)
    assert folder.out == answer.out
    monkeypatch.setattr(ColourEmbedder, "identity", "another")
    refused = unveil("clip", "search", out, "green", "--model", "any", *CPU)
    assert refused.status == 1 and "holds features of another model (any)" in refused.complaint


def test_a_clip_from_a_file(tiny: Path, flags: Path, tmp_path: Path, unveil: Unveil) -> None:
    """No stand-in here: the commands say what the model says in Python."""
    model = package.load_clip(tiny, device="cpu")
    files = sorted(str(file) for file in flags.rglob("*.png"))
    pictures = torch.stack([model.transform(Image.open(file)) for file in files])
    cosines = model.encode_images(pictures) @ model.encode_texts(["a cat", "a dog"]).T
    answer = unveil("predict", tiny, flags, "--labels", "a cat,a dog", "--format", "jsonl", *CPU)
    assert answer.status == 0, answer.err
    lines = {line["file"]: line["predictions"] for line in map(json.loads, answer.out.splitlines())}
    assert sorted(lines) == files
    for file, row in zip(files, (model.logit_scale * cosines).softmax(dim=1).tolist(), strict=True):
        found = {each["label"]: each["probability"] for each in lines[file]}
        assert [found["a cat"], found["a dog"]] == pytest.approx(row, abs=1e-5)
    out = tmp_path / "tiny.npz"
    assert unveil("embed", tiny, flags, "--what", "clip", "--out", out, *CPU).status == 0
    with np.load(out, allow_pickle=False) as table:
        order = [table["paths"].tolist().index(file) for file in files]
        torch.testing.assert_close(
            torch.from_numpy(table["features"])[order], model.encode_images(pictures), atol=1e-5, rtol=0
        )
    for images in (flags, out):
        answer = unveil("clip", "search", images, "a cat", "--model", tiny, "--format", "jsonl", *CPU)
        assert answer.status == 0, answer.err
        scores = {hit["file"]: hit["score"] for hit in map(json.loads, answer.out.splitlines())}
        assert [scores[file] for file in files] == pytest.approx(cosines[:, 0].tolist(), abs=1e-5)
    means = unveil("embed", tiny, flags, "--out", tmp_path / "means.npz", *CPU)
    assert means.status == 0, means.err
    refused = unveil("clip", "search", tmp_path / "means.npz", "a cat", "--model", tiny, *CPU)
    assert refused.status == 1 and "no text can be compared with" in refused.complaint
    headless = unveil("predict", tiny, flags, *CPU)
    assert headless.status == 1 and "--labels" in headless.complaint


def test_searches_that_cannot_be(colours: ColourEmbedder, flags: Path, tmp_path: Path, unveil: Unveil) -> None:
    (tmp_path / "empty").mkdir()
    model = ("--model", "any", *CPU)
    for arguments, complaint in (
        ((flags, "  "), "the text to look for is empty"),
        ((flags, "red", "--top-k", 0), "--top-k is 0"),
        ((flags, "red", "--sheet", tmp_path / "found.txt"), "must end in .png, .jpg, .jpeg or .webp"),
        ((flags, "red", "--sheet", tmp_path / "no" / "found.png"), "lies in no folder"),
        ((tmp_path / "empty", "red"), "holds no image"),
        ((tmp_path / "nothing", "red"), "nothing does not exist"),
        ((tmp_path / "nothing.npz", "red"), "nothing.npz does not exist"),
        ((flags / "broken.jpg", "red"), "1 of the 1 samples"),
    ):
        refused = unveil("clip", "search", *arguments, *model)
        assert refused.status == 1 and complaint in refused.complaint, refused.err
    assert not list(tmp_path.glob("*.png"))


def test_help_is_short_and_needs_no_torch(unveil: Unveil) -> None:
    shown = unveil("clip", "search", "--help")
    assert shown.status == 0 and len(shown.out.splitlines()) <= 50
    assert "Example: unveil clip search " in shown.out
    program = (
        "import contextlib, io, sys; from unveil.cli.main import main\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "    main(['clip', 'search', '--help'])\n"
        "print({'torch', 'numpy', 'PIL', 'matplotlib', 'open_clip'} & set(sys.modules))"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert answer.stdout.strip() == "set()"


def test_the_pages_python_runs(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every Python block of docs/clip.md's last section, in order, with another model."""
    monkeypatch.chdir(tmp_path)
    for name in ("cat", "dog"):
        save_photo(tmp_path / "photos" / f"{name}.jpg", len(name))
    section = PAGE.read_text(encoding="utf-8").partition("## In Python\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    assert len(blocks) == 3
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block.replace('"runs/clip"', repr(str(tiny))), str(PAGE), "exec"), names)
    assert names["cosines"].shape == (2, 2) and names["found"].images == 2 and names["found"].texts == 3
