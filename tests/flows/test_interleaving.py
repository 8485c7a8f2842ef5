"""The paper's way up (section 2.3.5): a CLIP teaches masked pre-training, whose network a larger CLIP starts from."""

from pathlib import Path

import torch
from PIL import Image

import unveil as package
from tests.flows.commands import Unveil, metrics, save_photo
from unveil.weights.load import read_backbone

QUIET = ("--workers", 0, "--set", "engine.trackers=", "--set", "engine.precision=fp32")


def larger(network: str) -> tuple[str, ...]:
    """Settings of a ViT that is larger than the tiny recipe's."""
    sizes = {"width": 96, "depth": 3, "heads": 3, "mlp_width": 192}
    return tuple(word for name, size in sizes.items() for word in ("--set", f"{network}.{name}={size}"))


def test_from_clip_to_masked_pretraining_to_a_larger_clip(tmp_path: Path, unveil: Unveil) -> None:
    for number in range(12):
        save_photo(tmp_path / "pairs" / "photos" / f"{number:02d}.png", number)
    rows = [f"photos/{number:02d}.png,noise of kind {number}" for number in range(12)]
    (tmp_path / "pairs" / "captions.csv").write_text("\n".join(["path,caption", *rows]) + "\n")
    first, masked, second = (tmp_path / name for name in ("first", "masked", "second"))
    train = ("clip", "train", tmp_path / "pairs", "--recipe", "clip_tiny_cpu", "--no-validation", *QUIET, "--steps", 2)
    answer = unveil(*train, "--out", first)
    assert answer.status == 0, answer.err

    pretrain = (
        "pretrain",
        tmp_path / "pairs" / "photos",
        "--recipe",
        "tiny_cpu",
        "--teacher",
        first,
        *QUIET,
        *larger("model"),
    )
    answer = unveil(*pretrain, "--steps", 2, "--out", masked)
    assert answer.status == 0, answer.err
    # The student predicts vectors of the space that the first CLIP's images and texts share.
    small = package.load_clip(first, device="cpu")
    _, state = read_backbone(masked)
    assert state["head.weight"].shape == (small.width, 96) and len(metrics(masked)) == 2

    answer = unveil(*train, "--out", second, "--vision-init", masked, "--text-init", first, *larger("model.vision"))
    assert answer.status == 0, answer.err
    large = package.load_clip(second, device="cpu")
    assert sum(value.numel() for value in large.towers.state_dict().values()) > sum(
        value.numel() for value in small.towers.state_dict().values()
    )
    with Image.open(tmp_path / "pairs" / "photos" / "00.png") as picture:
        images = large.transform(picture)[None]
    similarity = large.encode_images(images) @ large.encode_texts(["noise of kind 0", "something else"]).t()
    assert similarity.shape == (1, 2) and torch.isfinite(similarity).all() and similarity.abs().max() <= 1.0001
