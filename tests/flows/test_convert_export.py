"""`unveil convert` and `unveil export`: what they read, write, say and refuse."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import unveil as package
from tests.flows.commands import QUICK, Unveil
from unveil.config import ClassificationConfig, OptimizationConfig, ViTConfig
from unveil.config.serialize import to_json
from unveil.engine.checkpoint import CheckpointFolder
from unveil.models.vit import ViT
from unveil.tasks.classification.task import Classification
from unveil.weights.infer import config_in

MODEL = ViTConfig(image_size=28, patch_size=7, width=48, depth=2, heads=4, mlp_width=96)
CLASSES = ("boot", "coat", "dress")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps on the pixels of thirty photos."""
    from tests.flows.commands import save_photo
    from unveil.cli.main import main

    folder = tmp_path_factory.mktemp("pretrained")
    for number in range(8):
        save_photo(folder / "photos" / f"{number}.jpg", number)
    arguments = ("pretrain", folder / "photos", "--out", folder / "run", "--steps", 2, *QUICK)
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert ended.value.code == 0
    return folder / "run"


@pytest.fixture
def fine_tuned(pretrained: Path, tmp_path: Path) -> Path:
    """A run of a classifier, with averaged weights, as the engine leaves one behind."""
    run = tmp_path / "fine_tuned"
    config = ClassificationConfig(
        recipe="mine",
        model=MODEL,
        classes=CLASSES,
        optimization=OptimizationConfig(steps=10, global_batch_size=8),
        ema_decay=0.9,
        init_from=str(pretrained),
    )
    run.mkdir()
    (run / "config.json").write_text(json.dumps(to_json(config)))
    (run / "data.json").write_text(
        json.dumps({"order": "x", "parts": {"/home/photos": {"count": 8, "sha256": "ab12"}}})
    )
    (run / "environment.json").write_text(json.dumps({"unveil": "0.1", "torch": "2", "device": "cpu", "processes": 1}))
    lines = [{"step": 5, "loss": 1.5, "validation_accuracy": 0.25}, {"step": 10, "loss": 0.75, "lr": 1e-3}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 11, "lo')
    for file, seed in (("model.safetensors", 1), ("model_ema.safetensors", 2)):
        torch.manual_seed(seed)
        task = classifier()
        if seed == 1:
            CheckpointFolder(run / "checkpoints").save(10, task.state_dict(), {})
        save_file(task.state_dict(), run / "checkpoints/step_00000010" / file)
    return run


def classifier() -> Classification:
    return Classification(
        ViT(MODEL, final_norm=False),
        CLASSES,
        seed=0,
        normalization="clip",
        label_smoothing=0.1,
        head_init_scale=100.0,
    )


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def released(folder: Path) -> Path:
    """A tiny EVA as it was released."""
    torch.manual_seed(0)
    vit = ViT(ViTConfig(image_size=28, patch_size=7, width=64, depth=2, heads=1, mlp_width=128), mask_token=True)
    state = vit.state_dict() | {"lm_head.weight": torch.randn(5, 64), "lm_head.bias": torch.randn(5)}
    torch.save({"model": state, "epoch": 149}, folder / "eva_psz14.pt")
    return folder / "eva_psz14.pt"


def test_a_released_checkpoint_to_our_names_and_back(tmp_path: Path, unveil: Unveil) -> None:
    source, out = released(tmp_path), tmp_path / "deeper" / "mine.safetensors"
    answer = unveil("convert", source, "--to", out)
    assert answer.status == 0, answer.err
    assert f"tensors from {source} (EVA, masked pre-training)" in answer.out
    assert f"wrote {out}: native layout" in answer.out and "28 px in 4 x 4 patches of 7 px" in answer.out
    with safe_open(out, framework="pt") as file:
        notes = file.metadata()
    assert notes["layout"] == "native" and notes["heads"] == "1" and notes["source"] == "eva_psz14.pt"
    assert notes["source_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    back = unveil("convert", out, "--to", tmp_path / "back.pt", "--format", "eva")
    assert back.status == 0, back.err
    assert equal(torch.load(tmp_path / "back.pt", weights_only=True), torch.load(source, weights_only=True)["model"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back.pt", "deeper", "eva_psz14.pt"]


def test_resized_halved_and_reported(tmp_path: Path, unveil: Unveil) -> None:
    answer = unveil(
        *("convert", released(tmp_path), "--to", tmp_path / "timm.safetensors", "--format", "timm"),
        *("--image-size", 48, "--patch-size", 8, "--half"),
    )
    assert answer.status == 0, answer.err
    assert "resized: pos_embed (1, 17, 64) -> (1, 37, 64), patch_embed.proj.weight (64, 3, 7, 7)" in answer.out
    assert "left out: mask token (mask_token), predictor of masked pre-training (lm_head.weight" in answer.out
    written = load_file(tmp_path / "timm.safetensors")
    assert all(value.dtype == torch.float16 for value in written.values())
    network: Any = timm.models.eva.Eva(
        img_size=48, patch_size=8, embed_dim=64, depth=2, num_heads=1, mlp_ratio=2, num_classes=0, global_pool="token"
    )
    network.load_state_dict(written, strict=True)


def test_a_run_keeps_its_heads_and_can_be_started_from(
    pretrained: Path, photos: Path, tmp_path: Path, unveil: Unveil
) -> None:
    heads = json.loads((pretrained / "config.json").read_text())["model"]["heads"]
    out = tmp_path / "mine.safetensors"
    assert unveil("convert", pretrained, "--to", out).status == 0
    said = config_in(out)
    assert said is not None and said.heads == heads
    again = unveil("pretrain", photos, "--out", tmp_path / "run", "--steps", 1, "--init-from", out, *QUICK)
    assert again.status == 0, again.err
    wrong = ("--set", f"model.heads={2 * heads}")
    refused = unveil("pretrain", photos, "--out", tmp_path / "other", "--steps", 1, "--init-from", out, *QUICK, *wrong)
    assert f"holds a network with {heads} attention heads" in refused.complaint


def test_heads_that_nothing_tells_are_asked_for(tmp_path: Path, unveil: Unveil) -> None:
    save_file(ViT(MODEL).state_dict(), tmp_path / "w.safetensors")
    command = ("convert", tmp_path / "w.safetensors", "--to", tmp_path / "out.safetensors")
    assert unveil(*command).complaint.endswith("give it with --set model.heads=N")
    assert unveil(*command, "--set", "model.heads=4").status == 0
    assert "only model.heads, model.activation" in unveil(*command, "--overwrite", "--set", "model.depth=1").complaint
    assert "not a multiple of model.heads 5" in unveil(*command, "--overwrite", "--set", "model.heads=5").complaint
    assert "give a whole number" in unveil(*command, "--overwrite", "--set", "model.heads=many").complaint


def test_convert_refuses(tmp_path: Path, unveil: Unveil) -> None:
    source = released(tmp_path)
    (tmp_path / "there.pt").write_text("mine")
    (tmp_path / "file").write_text("")
    torch.save({"state": {0: {"exp_avg": torch.ones(1)}}, "param_groups": []}, tmp_path / "optimizer.pt")
    torch.save({"layer1.0.conv1.weight": torch.ones(1)}, tmp_path / "resnet.pt")
    torch.save({"token_embedding.weight": torch.ones(2, 2)}, tmp_path / "text.pt")
    torch.save({}, tmp_path / "empty.pt")
    cases: list[tuple[tuple[object, ...], str]] = [
        ((source, "--to", tmp_path / "there.pt"), "is there already; give --overwrite"),
        ((source, "--to", tmp_path / "weights.bin2"), "must end in one of .safetensors, .pt, .pth"),
        ((source, "--to", tmp_path / "file" / "out.pt"), "is a file, so nothing can be written in it"),
        ((source, "--to", tmp_path / "out.pt", "--image-size", 30), "is not a multiple of model.patch_size 7; try 28"),
        ((source, "--to", tmp_path / "out.pt", "--patch-size", 0), "--patch-size is 0; give at least 1"),
        ((source, "--to", tmp_path / "out.pt", "--format", "openai"), "has no place in OpenAI's CLIP layout"),
        ((tmp_path / "absent.pt", "--to", tmp_path / "out.pt"), "absent.pt is not there"),
        ((tmp_path / "optimizer.pt", "--to", tmp_path / "out.pt"), "looks like the state of an optimizer"),
        ((tmp_path / "resnet.pt", "--to", tmp_path / "out.pt"), "looks like a ResNet"),
        ((tmp_path / "text.pt", "--to", tmp_path / "out.pt"), "looks like a text model"),
        ((tmp_path / "empty.pt", "--to", tmp_path / "out.pt"), "it is an empty table"),
    ]
    for arguments, sentence in cases:
        answer = unveil("convert", *arguments)
        assert answer.status == 1 and sentence in answer.complaint, (arguments, answer)
    assert (tmp_path / "there.pt").read_text() == "mine" and not (tmp_path / "out.pt").exists()
    assert unveil("convert", source, "--to", tmp_path / "there.pt", "--overwrite").status == 0


def test_export_of_a_classifier_with_its_card(fine_tuned: Path, tmp_path: Path, unveil: Unveil) -> None:
    out = tmp_path / "out"
    answer = unveil("export", fine_tuned, "--to", "timm", "--out", out)
    assert answer.status == 0, answer.err
    assert f'timm.create_model("local-dir:{out}", pretrained=True)' in answer.out and "model card: " in answer.out
    averaged = load_file(fine_tuned / "checkpoints/step_00000010/model_ema.safetensors")
    assert torch.equal(load_file(out / "model.safetensors")["head.weight"], averaged["head.weight"])
    card = (out / "README.md").read_text()
    for part in (
        "48 wide, 2 deep, 0.0 M parameters",
        "The weights are the running average over training.",
        "| `photos` | 8 | `ab12` |",
        "3 classes: boot, coat, dress.",
        "`mine` (ClassificationConfig)",
        "AdamW(learning_rate=0.001",
        "| loss | 0.75 | 10 |",
        "| validation_accuracy | 0.25 | 5 |",
        "- started from `",
        "unveil 0.1, torch 2, device cpu",
    ):
        assert part in card, part
    raw = unveil("export", fine_tuned, "--to", "timm", "--out", out, "--weights", "raw", "--overwrite")
    assert raw.status == 0, raw.err
    assert "The weights are those of the last step." in (out / "README.md").read_text()
    last = load_file(fine_tuned / "checkpoints/step_00000010/model.safetensors")
    assert torch.equal(load_file(out / "model.safetensors")["head.weight"], last["head.weight"])


def test_export_to_safetensors_gives_the_same_model(fine_tuned: Path, tmp_path: Path, unveil: Unveil) -> None:
    answer = unveil("export", fine_tuned, "--to", "safetensors", "--out", tmp_path / "mine.safetensors")
    assert answer.status == 0, answer.err
    images = torch.randint(0, 256, (2, 3, 28, 28), dtype=torch.uint8)
    one, other = package.load(fine_tuned), package.load(tmp_path / "mine.safetensors")
    assert torch.equal(one.logits(images), other.logits(images)) and other.classes == CLASSES
    assert other.normalization == one.normalization == "clip"


def test_the_share_of_the_image_that_a_classifier_was_judged_on_goes_along(
    fine_tuned: Path, tmp_path: Path, unveil: Unveil
) -> None:
    """Exported, and renamed."""
    run = shutil.copytree(fine_tuned, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"test_crop": 0.875}))
    assert unveil("export", run, "--to", "safetensors", "--out", tmp_path / "mine.safetensors").status == 0
    assert unveil("convert", run, "--to", tmp_path / "native.safetensors").status == 0
    for name in ("run", "mine.safetensors", "native.safetensors"):
        assert package.load(tmp_path / name).crop.share == 0.875


@pytest.mark.parametrize("to", ["onnx", "torch-export"])
def test_export_of_features(to: str, pretrained: Path, tmp_path: Path, unveil: Unveil) -> None:
    if to == "onnx":
        pytest.importorskip("onnxruntime")
    answer = unveil("export", pretrained, "--to", to, "--out", tmp_path / "out", "--dynamic-batch")
    assert answer.status == 0, answer.err
    card = (tmp_path / "out" / "README.md").read_text()
    assert "feature extractor" in card and "trained from random numbers" in card and "PixelTarget" in card
    model = package.load(pretrained)
    images = torch.randint(0, 256, (5, 3, model.image_size, model.image_size), dtype=torch.uint8)
    if to == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
        cls, patches = map(torch.from_numpy, session.run(None, {"images": images.numpy()}))
    else:
        cls, patches = torch.export.load(tmp_path / "out" / "model.pt2").module()(images)
    expected = model.features(images)
    torch.testing.assert_close(cls, expected.cls, atol=1e-4, rtol=0)
    torch.testing.assert_close(patches, expected.patches, atol=1e-4, rtol=0)


def test_export_refuses(pretrained: Path, tmp_path: Path, unveil: Unveil) -> None:
    (tmp_path / "file").write_text("")
    to = ("--to", "onnx")
    cases: list[tuple[tuple[object, ...], str]] = [
        ((pretrained, *to, "--out", tmp_path / "file"), "is a file, not a folder"),
        ((pretrained, *to, "--out", tmp_path / "file" / "deeper"), "cannot be written"),
        ((pretrained, *to, "--out", pretrained), "is the folder of a run"),
        ((pretrained, *to, "--out", tmp_path / "out", "--batch-size", 0), "--batch-size is 0"),
        ((tmp_path / "absent", *to, "--out", tmp_path / "out"), "absent does not exist"),
        ((tmp_path, *to, "--out", tmp_path / "out"), "holds no checkpoint"),
    ]
    for arguments, sentence in cases:
        answer = unveil("export", *arguments)
        assert answer.status == 1 and sentence in answer.complaint, (arguments, answer)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("command", ["convert", "export"])
def test_help(command: str, unveil: Unveil) -> None:
    shown = unveil(command, "--help")
    assert shown.status == 0 and len(shown.out.splitlines()) <= 50
    assert f"Example: unveil {command} " in shown.out
