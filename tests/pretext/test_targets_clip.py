"""The CLIP teacher against the released EVA code's numbers and against open_clip's tower."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from unveil.config import ClipModelConfig, ClipTarget, TextConfig, UnveilError, ViTConfig
from unveil.config.serialize import to_json
from unveil.config.teacher import parse_teacher
from unveil.models.clip import Clip
from unveil.models.vit import ViT
from unveil.pretext.targets.base import SelectiveTarget
from unveil.pretext.targets.build import build_target
from unveil.pretext.targets.clip import ClipTeacher, load_clip
from unveil.weights.openai_clip import tower_from_openai
from unveil.weights.sizes import HEAD_WIDTHS

GOLDEN = Path(__file__).parents[1] / "golden" / "clip_teacher_tiny.npz"


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    with np.load(GOLDEN) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


@pytest.fixture(scope="module")
def state(golden: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix("weight/"): value for name, value in golden.items() if name.startswith("weight/")}


def open_clip_tower(*, activation: type[torch.nn.Module], layers: int = 2, width: int = 128) -> torch.nn.Module:
    from open_clip.transformer import VisionTransformer

    torch.manual_seed(0)
    tower = VisionTransformer(
        image_size=28,
        patch_size=7,
        width=width,
        layers=layers,
        heads=width // 64,
        mlp_ratio=2.0,
        output_dim=10,
        act_layer=activation,
    ).eval()
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return tower


def patch_features(tower: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """As EVA uses the tower, from open_clip's own parts."""
    with torch.no_grad():
        tokens = tower.transformer(tower._embeds(pixels))
        return tower.ln_post(tokens[:, 1:]) @ tower.proj


def test_equals_the_released_code(golden: dict[str, torch.Tensor], state: dict[str, torch.Tensor]) -> None:
    tower = tower_from_openai(state, activation="quick_gelu")
    teacher = ClipTeacher(tower, name="tiny", grid=(4, 4), precision=torch.float32)
    assert (teacher.dim, teacher.grid, teacher.image_size) == (24, (4, 4), 56)
    # The golden images are normalised floats, so they go to the tower itself.
    with torch.no_grad():
        features = teacher._vit(golden["image"]).patches @ teacher._projection
    assert torch.allclose(features, golden["patch_features"], atol=1e-5, rtol=1e-5)


def test_the_whole_call_equals_the_parts(state: dict[str, torch.Tensor]) -> None:
    """Bytes in: CLIP's normalisation, every block, cls dropped, norm, projection."""
    teacher = ClipTeacher(
        tower_from_openai(state, activation="quick_gelu"), name="tiny", grid=(4, 4), precision=torch.float32
    )
    images = torch.randint(0, 256, (2, 3, 56, 56), dtype=torch.uint8)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    with torch.no_grad():
        expected = teacher._vit((images / 255 - mean) / std).patches @ state["proj"]
    assert torch.allclose(teacher(images), expected, atol=1e-4)


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_equals_open_clips_tower(activation: str) -> None:
    from open_clip.transformer import QuickGELU

    tower = open_clip_tower(activation=QuickGELU if activation == "quick_gelu" else torch.nn.GELU)
    images = torch.randint(0, 256, (2, 3, 28, 28), dtype=torch.uint8)
    ours = tower_from_openai(tower.state_dict(), activation=activation)
    teacher = ClipTeacher(ours, name="t", grid=(4, 4), precision=torch.float32, mean=(0.5,) * 3, std=(0.5,) * 3)
    expected = patch_features(tower, images / 127.5 - 1.0)
    assert torch.allclose(teacher(images), expected, atol=1e-4, rtol=1e-4)


def test_bare_files_with_and_without_prefix(
    tmp_path: Path, state: dict[str, torch.Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    from safetensors.torch import save_file

    images = torch.randint(0, 256, (1, 3, 56, 56), dtype=torch.uint8)
    torch.save(state, tmp_path / "bare.pt")
    whole = {f"visual.{name}": value for name, value in state.items()} | {"logit_scale": torch.ones(())}
    torch.save({"state_dict": {f"module.{name}": value for name, value in whole.items()}}, tmp_path / "whole.pth")
    save_file(whole, tmp_path / "whole.safetensors")
    teachers = [
        build_target(ClipTarget(name=str(tmp_path / file)), grid=(4, 4), patch_size=14)
        for file in ("bare.pt", "whole.pth", "whole.safetensors")
    ]
    assert "quick GELU" in caplog.text and "ViT-L-14/" in caplog.text
    for teacher in teachers[1:]:
        assert torch.equal(teacher(images), teachers[0](images))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_openai_s_own_archive(tmp_path: Path, state: dict[str, torch.Tensor], caplog: pytest.LogCaptureFixture) -> None:
    """Their files are TorchScript programs: the weights are read, nothing is asked about the activation."""

    class Tower(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.visual = torch.nn.Module()
            self.register_buffer("input_resolution", torch.tensor(56))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    whole = Tower()
    for name, value in state.items():
        *path, last = name.split(".")
        module = whole.visual
        for part in path:
            if not hasattr(module, part):
                module.add_module(part, torch.nn.Module())
            module = getattr(module, part)
        module.register_parameter(last, torch.nn.Parameter(value.half()))
    torch.jit.save(torch.jit.trace(whole, torch.zeros(1)), tmp_path / "openai.pt")
    teacher = load_clip(ClipTarget(name=str(tmp_path / "openai.pt")), grid=(4, 4))
    assert teacher.dim == 24 and caplog.text == ""


def test_model_and_file(tmp_path: Path) -> None:
    """MODEL/FILE takes the activation from open_clip's model; a name with -quickgelu has the other one."""
    tower = open_clip_tower(activation=torch.nn.GELU)
    torch.save(tower.state_dict(), tmp_path / "tower.pt")
    images = torch.randint(0, 256, (2, 3, 28, 28), dtype=torch.uint8)
    named = load_clip(ClipTarget(name=f"ViT-B-32/{tmp_path / 'tower.pt'}"), grid=(4, 4))
    quick = load_clip(ClipTarget(name=f"ViT-B-32-quickgelu/{tmp_path / 'tower.pt'}"), grid=(4, 4))
    bare = load_clip(ClipTarget(name=str(tmp_path / "tower.pt")), grid=(4, 4))
    assert torch.equal(quick(images), bare(images))
    assert not torch.equal(named(images), bare(images))


def test_another_grid_resizes_positions_or_features(state: dict[str, torch.Tensor]) -> None:
    tower = tower_from_openai(state, activation="quick_gelu")
    images = torch.randint(0, 256, (1, 3, 70, 70), dtype=torch.uint8)
    positions = ClipTeacher(tower, name="t", grid=(5, 5), precision=torch.float32)
    assert positions.image_size == 70 and positions(images).shape == (1, 25, 24)
    features = ClipTeacher(tower, name="t", grid=(5, 5), resize_grid=True, precision=torch.float32)
    assert features.image_size == 56 and features(images).shape == (1, 25, 24)
    own = ClipTeacher(tower, name="t", grid=(4, 4), precision=torch.float32)(images)
    # Resizing smoothly keeps the mean nearly as it is.
    assert torch.allclose(features(images).mean(dim=1), own.mean(dim=1), atol=0.1)


def test_without_projection(state: dict[str, torch.Tensor]) -> None:
    tower = tower_from_openai(state, activation="quick_gelu")
    images = torch.randint(0, 256, (1, 3, 56, 56), dtype=torch.uint8)
    before = ClipTeacher(tower, name="t", grid=(4, 4), projected=False, precision=torch.float32)
    after = ClipTeacher(tower, name="t", grid=(4, 4), precision=torch.float32)
    assert before.dim == 64
    assert torch.allclose(before(images) @ state["proj"], after(images), atol=1e-4)
    with pytest.raises(UnveilError, match="no projection"):
        ClipTeacher(dataclasses.replace(tower, projection=None), name="t", grid=(4, 4))


@pytest.mark.parametrize(
    "settings",
    [{}, {"projected": False}, {"projected": False, "layers": 2}, {"grid": (5, 5), "resize_grid": True}],
    ids=["projected", "before projection", "two layers", "resized"],
)
def test_some_patches_are_asked_for(state: dict[str, torch.Tensor], settings: dict[str, Any]) -> None:
    tower = tower_from_openai(state, activation="quick_gelu")
    teacher = ClipTeacher(tower, name="t", **({"grid": (4, 4), "precision": torch.float32} | settings))
    assert isinstance(teacher, SelectiveTarget)
    images = torch.randint(0, 256, (2, 3, 56, 56), dtype=torch.uint8)
    patches = torch.tensor([[3, 15, 0, 0], [7, 2, 9, 0]])
    expected = torch.stack([row[numbers] for row, numbers in zip(teacher(images), patches, strict=True)])
    torch.testing.assert_close(teacher.at(images, patches), expected, atol=1e-5, rtol=1e-4)


def test_the_last_block_works_for_the_patches_that_are_asked_for(state: dict[str, torch.Tensor]) -> None:
    """By torch's counter: of 2 blocks of 17 tokens the second answers cls and 3 patches."""
    teacher = ClipTeacher(
        tower_from_openai(state, activation="quick_gelu"), name="t", grid=(4, 4), precision=torch.float32
    )
    images = torch.zeros(1, 3, 56, 56, dtype=torch.uint8)
    counts = []
    for ask in (lambda: teacher(images), lambda: teacher.at(images, torch.arange(3)[None])):
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            ask()
        counts.append(counter.get_total_flops())
    # Queries, output and MLP (2 x 4 times as wide) of 13 tokens, their rows of two products, 13 projections to 24.
    spared = 13 * 2 * (64 * 64 * (1 + 1 + 8) + 2 * 17 * 64 + 64 * 24)
    assert counts[0] - counts[1] == spared


def test_matrices_kept_in_bf16_change_no_bit(state: dict[str, torch.Tensor]) -> None:
    """Autocast rounds them in each call; the teacher once, when it is brought to its place."""
    teachers = [
        ClipTeacher(tower_from_openai(state, activation="quick_gelu"), name="t", grid=(4, 4), precision=torch.bfloat16)
        for _ in range(2)
    ]
    teachers[1].to("cpu")
    assert teachers[1]._vit.blocks[0].mlp.fc1.weight.dtype == torch.bfloat16
    assert teachers[1]._vit.blocks[0].norm1.weight.dtype == teachers[1]._vit.pos_embed.dtype == torch.float32
    images = torch.randint(0, 256, (2, 3, 56, 56), dtype=torch.uint8)
    found = [teacher(images) for teacher in teachers]
    assert torch.equal(*found) and found[0].dtype == torch.float32
    # No tensor of inference mode, which autograd would refuse to keep for the student's backward pass.
    assert not found[0].is_inference() and not teachers[0].at(images, torch.zeros(2, 1).long()).is_inference()


def test_heads_are_open_clips() -> None:
    """No shape in a file tells how many heads there are; the widths that we know by heart are open_clip's."""
    import open_clip

    for model in open_clip.list_models():
        vision = open_clip.get_model_config(model)["vision_cfg"]
        if "timm_model_name" not in vision and not isinstance(vision["layers"], list):
            assert vision.get("head_width", 64) == HEAD_WIDTHS.get(vision["width"], 64), model


def test_bad_files(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    def load(name: str) -> None:
        load_clip(ClipTarget(name=str(tmp_path / name)), grid=(4, 4))

    (tmp_path / "text.pt").write_text("not weights")
    with pytest.raises(UnveilError, match=r"text\.pt is not a checkpoint"):
        load("text.pt")
    torch.save(state, tmp_path / "cut.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "cut.pt").read_bytes()[:5000])
    with pytest.raises(UnveilError, match=r"cut\.pt .*cut short"):
        load("cut.pt")
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    with pytest.raises(UnveilError, match="holds no tensors"):
        load("empty.pt")
    torch.save({"layer.weight": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(UnveilError, match="not a CLIP"):
        load("other.pt")
    torch.save({"visual.trunk.norm.weight": torch.zeros(3)}, tmp_path / "trunk.pt")
    with pytest.raises(UnveilError, match="EVA01-g-14/"):
        load("trunk.pt")
    torch.save({k: v for k, v in state.items() if "resblocks.1.ln_1" not in k}, tmp_path / "incomplete.pt")
    with pytest.raises(UnveilError, match=r"norm1"):
        load("incomplete.pt")


def test_a_clip_that_we_trained(tmp_path: Path) -> None:
    """Its image tower, read from the run's newest checkpoint, with the run's own normalisation."""
    vision = ViTConfig(image_size=28, patch_size=7, width=32, depth=2, heads=2, mlp_width=48, drop_path=0.5)
    text = TextConfig(context_length=8, vocabulary_size=20, width=32, heads=2, depth=1, mlp_width=48)
    clip = Clip(ClipModelConfig(vision=vision, text=text, embedding_width=12))
    torch.nn.init.normal_(clip.visual_projection.bias)
    checkpoint = tmp_path / "run" / "checkpoints" / "step_7"
    checkpoint.mkdir(parents=True)
    save_file({f"clip.{name}": value for name, value in clip.state_dict().items()}, checkpoint / "model.safetensors")
    said = {"model": to_json(clip.config), "data": {"normalization": "half"}}
    (tmp_path / "run" / "config.json").write_text(json.dumps(said))
    config = parse_teacher(str(tmp_path / "run"))
    assert isinstance(config, ClipTarget)
    teacher = load_clip(config, grid=(4, 4))
    assert isinstance(teacher, ClipTeacher) and teacher.dim == 12 and "step_7" in teacher.name
    teacher._precision = torch.float32
    images = torch.randint(0, 256, (2, 3, 28, 28), dtype=torch.uint8)
    with torch.no_grad():
        expected = clip.visual_projection(clip.visual((images / 255 - 0.5) / 0.5).patches)
    torch.testing.assert_close(teacher(images), expected, atol=1e-5, rtol=1e-5)


def test_a_tower_of_ours_without_projection(tmp_path: Path) -> None:
    vision = ViTConfig(image_size=28, patch_size=7, width=64, depth=1, heads=1, mlp_width=48)
    state = {f"backbone.{name}": value for name, value in ViT(vision, mask_token=True).state_dict().items()}
    save_file(state, tmp_path / "masked.safetensors", metadata={"unveil.model": json.dumps(to_json(vision))})
    config = ClipTarget(name=str(tmp_path / "masked.safetensors"))
    with pytest.raises(UnveilError, match="has no projection: use --set target.projected=false"):
        load_clip(config, grid=(4, 4))
    teacher = load_clip(dataclasses.replace(config, projected=False), grid=(4, 4))
    assert teacher(torch.zeros(1, 3, 28, 28, dtype=torch.uint8)).shape == (1, 16, 64)
