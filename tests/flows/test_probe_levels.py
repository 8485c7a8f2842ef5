"""`unveil probe --levels`: what each level of a RevColV2 holds, from weights to numbers and a picture."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.preprocessing import StandardScaler

from tests.distributed.processes import together
from tests.flows.commands import Unveil, command_here
from unveil.cli.main import main
from unveil.config import RevColV2Config, ViTConfig
from unveil.config.serialize import to_json
from unveil.data.normalization import normalize
from unveil.models.revcolv2 import RevColV2
from unveil.models.vit import ViT
from unveil.tasks.classification.frozen_features import knn_accuracy, linear_probe
from unveil.tasks.classification.pixel_readout import RIDGE
from unveil.weights.write import notes, write_weights

TINY = RevColV2Config(
    image_size=32,
    patch_size=4,
    mask_unit=8,
    widths=(16, 16),
    layers=(1, 1),
    kinds=("convolution", "transformer"),
    bottom_up_columns=1,
    top_down_columns=1,
    head_width=16,
    layer_scale=None,
)
QUICK = ("--workers", 0, "--set", "engine.trackers=", "--set", "engine.precision=fp32")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run of a RevColV2 leaves behind of its weights and its configuration."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run")
    state = {f"backbone.{name}": value for name, value in RevColV2(TINY, mask_token=True).state_dict().items()}
    known = {"model": to_json(TINY), "data": {"normalization": "imagenet"}}
    (folder / "config.json").write_text(json.dumps(known))
    write_weights(
        folder / "model.safetensors",
        state,
        notes({"model": to_json(TINY), "normalization": "imagenet"}, layout="native", source=folder),
    )
    return folder


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample") / "scenes"
    with pytest.raises(SystemExit):
        main(["sample-data", str(folder), "--train", "40", "--test", "20", "--size", "32"])
    return folder


def as_arrays(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """The images (bytes) and labels of class folders."""
    files = sorted(folder.rglob("*.png"))
    names = sorted({file.parent.name for file in files})
    pixels = [torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1) for file in files]
    return torch.stack(pixels), torch.tensor([names.index(file.parent.name) for file in files])


def test_the_whole_way(unveil: Unveil, scenes: Path, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "levels"
    shown = unveil("probe", scenes, "--model", run, "--levels", "--out", out, *QUICK)
    assert shown.status == 0, shown.err
    assert "each level of the last column of each half, 4 in all" in shown.out
    report = json.loads((out / "report.json").read_text())
    rows = [(row["column"], row["stride"], row["width"], row["cells"]) for row in report["levels"]]
    assert rows == [(column, *size) for column in ("bottom_up", "top_down") for size in ((4, 16, 2560), (8, 16, 640))]
    # The network has not been trained, but its seed is that of the comparison.
    assert report["untrained"] == report["levels"]
    assert report["pixel_images"] == {"fitted": 40, "judged": 20}
    assert report["colour_side"] == 4 and list(report["raw_pixels"]["methods"]) == ["lbfgs", "knn"]
    table = {line.split("px")[0].strip(): line for line in shown.out.splitlines() if "px  " in line}
    for row in report["levels"]:
        line = table[f"{row['column'].replace('_', '-')}, {row['stride']}"]
        for score in row["methods"].values():
            assert f"{100 * score['top1']:.2f} (" in line
        assert f"{row['pixels']['r2']:.3f} (" in line and f"{row['colours']['psnr']:.1f} (" in line
    with Image.open(out / "levels.png") as picture:
        assert picture.width > 600 and len(set(picture.resize((64, 64)).getdata())) > 100
    assert not (out / "model.safetensors").exists()

    # One level once more, by other means.
    torch.manual_seed(0)
    network = RevColV2(TINY, mask_token=True).eval()
    (train, train_labels), (test, test_labels) = (as_arrays(scenes / part) for part in ("train", "test"))
    with torch.no_grad():
        maps = [network(normalize(part, "imagenet"), need=("levels",)).levels[8] for part in (train, test)]
    means = [part.mean(dim=(2, 3)) for part in maps]
    found = report["levels"][3]["methods"]
    assert found["lbfgs"]["top1"] == pytest.approx(linear_probe(means[0], train_labels, means[1], test_labels))
    assert found["knn"]["top1"] == pytest.approx(knn_accuracy(means[0], train_labels, means[1], test_labels))
    cells = [part.permute(0, 2, 3, 1).flatten(0, 2).double().numpy() for part in maps]
    squares = [
        (part.double() / 255).unflatten(3, (4, 8)).unflatten(2, (4, 8)).permute(0, 2, 4, 1, 3, 5).flatten(3)
        for part in (train, test)
    ]
    scaler = StandardScaler().fit(cells[0])
    ridge = Ridge(alpha=RIDGE * len(cells[0])).fit(scaler.transform(cells[0]), squares[0].flatten(0, 2).numpy())
    said = torch.from_numpy(ridge.predict(scaler.transform(cells[1]))).view_as(squares[1])
    by_colour = [part.unflatten(3, (3, 64)).movedim(3, -1).flatten(0, -2).numpy() for part in (squares[1], said)]
    expected = r2_score(*by_colour, multioutput="variance_weighted")
    assert report["levels"][3]["pixels"]["r2"] == pytest.approx(expected, abs=1e-4)

    # It is a folder of its own: the probe of what is usually read goes elsewhere.
    other = unveil("probe", scenes, "--model", run, "--out", out, *QUICK)
    assert other.status == 1 and "another configuration (levels: " in other.complaint


def test_two_processes_measure_as_one(scenes: Path, run: Path, tmp_path: Path) -> None:
    arguments = ("probe", scenes, "--model", run, "--levels", "--method", "knn", "--labels", 20, "--draws", 2, *QUICK)
    assert command_here(*map(str, (*arguments, "--out", tmp_path / "one"))) == 0
    assert together(2, command_here, *map(str, (*arguments, "--out", tmp_path / "two"))) == [0, 0]
    one, two = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("one", "two"))
    assert one["draws"] == 2 and "deviation_of_top1" in one["levels"][0]["methods"]["knn"]
    for here, there in zip(one["levels"], two["levels"], strict=True):
        assert here["methods"]["knn"]["top1"] == there["methods"]["knn"]["top1"]
        assert here["pixels"] == pytest.approx(there["pixels"], rel=1e-5)


def test_what_has_no_levels_is_refused(unveil: Unveil, scenes: Path, run: Path, tmp_path: Path) -> None:
    config = ViTConfig(image_size=16, patch_size=4, width=32, depth=1, heads=2, mlp_width=64)
    state = {f"backbone.{name}": value for name, value in ViT(config).state_dict().items()}
    vit, out = tmp_path / "vit.safetensors", tmp_path / "refused"
    known = {"model": to_json(config), "normalization": "imagenet"}
    write_weights(vit, state, notes(known, layout="native", source=Path("nowhere")))
    refused = unveil("probe", scenes, "--model", vit, "--levels", "--out", out, *QUICK)
    assert refused.status == 1 and "vit.safetensors is a ViT" in refused.complaint
    refused = unveil("probe", scenes, "--model", run, "--levels", "--method", "linear", "--out", out, *QUICK)
    assert refused.status == 1 and "measured with lbfgs and knn" in refused.complaint
    assert not out.exists()
