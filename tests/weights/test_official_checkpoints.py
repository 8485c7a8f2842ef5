"""Names and shapes of every released EVA checkpoint, and of MAE's, without their gigabytes: read completely, counted
exactly.

EVA's parameter counts are those in the released training logs; names and shapes are those of the released modules.
"""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from unveil.build.pretext import build_pretext
from unveil.config import PretrainConfig, ViTConfig
from unveil.models.vit import ViT
from unveil.recipes import mae_base, mae_large
from unveil.weights import eva, timm_vit
from unveil.weights.infer import head_of, infer, pooling_of
from unveil.weights.load import fill_backbone

GIANT = ViTConfig(image_size=224, patch_size=14, width=1408, depth=40, heads=16, mlp_width=6144)
LARGE = dataclasses.replace(GIANT, width=1024, depth=24, heads=16, mlp_width=4096, qkv_bias="all")

State = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]


def on_meta(shapes: Shapes) -> State:
    return {name: torch.empty(shape, device="meta", dtype=torch.float16) for name, shape in shapes.items()}


def linear(name: str, out: int, into: int) -> Shapes:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def block(name: str, width: int, mlp: int, *, separate_biases: bool) -> Shapes:
    biases = {f"{name}.attn.{which}_bias": (width,) for which in "qv"}
    joint = {f"{name}.attn.qkv.bias": (3 * width,)}
    return (
        norm(f"{name}.norm1", width)
        | (biases if separate_biases else joint)
        | {f"{name}.attn.qkv.weight": (3 * width, width)}
        | linear(f"{name}.attn.proj", width, width)
        | norm(f"{name}.norm2", width)
        | linear(f"{name}.mlp.fc1", mlp, width)
        | linear(f"{name}.mlp.fc2", width, mlp)
    )


def trunk(side: int, config: ViTConfig = GIANT) -> Shapes:
    width, patch = config.width, config.patch_size
    shapes: Shapes = {"cls_token": (1, 1, width), "pos_embed": (1, 1 + side * side, width)}
    shapes |= {"patch_embed.proj.weight": (width, 3, patch, patch), "patch_embed.proj.bias": (width,)}
    for number in range(config.depth):
        separate = config.qkv_bias == "query_and_value"
        shapes |= block(f"blocks.{number}", width, config.mlp_width, separate_biases=separate)
    return shapes


def masked_pretraining() -> State:
    return on_meta(trunk(16) | {"mask_token": (1, 1, 1408)} | norm("norm", 1408) | linear("lm_head", 768, 1408))


def classifier(side: int, classes: int) -> Callable[[], State]:
    return lambda: on_meta(trunk(side) | norm("fc_norm", 1408) | linear("head", classes, 1408))


def linear_probe() -> State:
    head = {"head.0.running_mean": (1408,), "head.0.running_var": (1408,), "head.0.num_batches_tracked": ()}
    return on_meta(trunk(16) | norm("norm", 1408) | head | linear("head.1", 1000, 1408))


def clip() -> State:
    visual = trunk(16) | norm("norm", 1408) | linear("head", 1024, 1408)
    text: Shapes = {"token_embedding.weight": (49408, 768), "positional_embedding": (77, 768)}
    for number in range(12):
        name = f"transformer.resblocks.{number}"
        text |= norm(f"{name}.ln_1", 768) | norm(f"{name}.ln_2", 768) | linear(f"{name}.attn.out_proj", 768, 768)
        text |= {f"{name}.attn.in_proj_weight": (2304, 768), f"{name}.attn.in_proj_bias": (2304,)}
        text |= linear(f"{name}.mlp.c_fc", 3072, 768) | linear(f"{name}.mlp.c_proj", 768, 3072)
    text |= norm("ln_final", 768) | {"text_projection": (768, 1024), "logit_scale": ()}
    return on_meta({f"visual.{n}": s for n, s in visual.items()} | {f"text.{n}": s for n, s in text.items()})


def masked_autoencoder() -> State:
    shapes = trunk(16, LARGE) | norm("norm", 1024) | linear("decoder_embed", 512, 1024)
    shapes |= {"mask_token": (1, 1, 512), "decoder_pos_embed": (1, 257, 512)}
    for number in range(4):
        shapes |= block(f"decoder_blocks.{number}", 512, 2048, separate_biases=False)
    return on_meta(shapes | norm("decoder_norm", 512) | linear("decoder_pred", 1024, 512))


def released_mae(config: ViTConfig, *, whole: bool) -> State:
    """MAE's: `mae_pretrain_vit_*.pth`, and those for its pictures, which hold the decoder too (`_full`)."""
    shapes = trunk(14, config) | norm("norm", config.width)
    if whole:
        shapes |= linear("decoder_embed", 512, config.width)
        shapes |= {"mask_token": (1, 1, 512), "decoder_pos_embed": (1, 197, 512)}
        for number in range(8):
            shapes |= block(f"decoder_blocks.{number}", 512, 2048, separate_biases=False)
        shapes |= norm("decoder_norm", 512) | linear("decoder_pred", 768, 512)
    return on_meta(shapes)


MASK_AND_PREDICTOR = {"mask token": 1, "predictor of masked pre-training": 2}
FINE_TUNED = {"norm after pooling": 2, "classification head": 2}
CHECKPOINTS: dict[str, tuple[Callable[[], State], int, int, dict[str, int]]] = {
    # How it is made, parameters, tensors, what a backbone has no place for.
    "eva_psz14": (masked_pretraining, 1_012_229_632, 529, MASK_AND_PREDICTOR),
    "eva_21k_224px_psz14": (classifier(16, 21841), 1_041_920_081, 528, FINE_TUNED),
    "eva_21k_1k_336px_psz14_ema_89p6": (classifier(24, 1000), 1_013_005_672, 528, FINE_TUNED),
    "eva_21k_1k_560px_psz14_ema_89p7": (classifier(40, 1000), 1_014_447_464, 528, FINE_TUNED),
    "eva_clip_psz14": (
        clip,
        1_136_435_841,
        678,
        {"projection into the space shared with text": 2, "text tower": 150},
    ),
    # The log counts the 316,576,768 that are trained: all but the two position tables of sines and cosines.
    "eva_l_psz14": (masked_autoencoder, 316_576_768 + 257 * (1024 + 512), 350, {"decoder": 56}),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_official_checkpoint_is_read_completely(name: str) -> None:
    build, parameters, tensors, left_out = CHECKPOINTS[name]
    state = build()
    assert sum(value.numel() for value in state.values()) == parameters
    assert len(state) == tensors
    config = infer(state, source=name)
    side = {"eva_21k_1k_336px_psz14_ema_89p6": 336, "eva_21k_1k_560px_psz14_ema_89p7": 560}.get(name, 224)
    assert config == dataclasses.replace(LARGE if name == "eva_l_psz14" else GIANT, image_size=side)
    fine_tuned = left_out == FINE_TUNED
    with torch.device("meta"):
        vit = ViT(config, final_norm=not fine_tuned)
    report = fill_backbone(vit, state, source=name)
    assert (report.missing, report.unexpected, report.renamed, report.resized, report.notes) == ([], [], {}, {}, [])
    assert {part: len(names) for part, names in report.left_out.items()} == left_out
    assert len(report.loaded) + sum(left_out.values()) == tensors
    assert set(report.loaded) == set(vit.state_dict())
    assert all(value.is_meta for value in vit.state_dict().values())
    head = head_of(state)
    assert (head is not None) == fine_tuned and pooling_of(state) == ("mean" if fine_tuned else "cls")
    if head is not None:
        assert head[0].shape == (21841 if "21k_224" in name else 1000, 1408) and head[1].shape == head[0].shape[:1]


def test_eva_clip_tower_counts_apart_from_its_text_tower() -> None:
    state = clip()
    counts = {
        tower: sum(v.numel() for name, v in state.items() if name.startswith(tower)) for tower in ("visual.", "text.")
    }
    assert counts == {"visual.": 1_012_588_928, "text.": 123_846_913}


def test_official_linear_probe() -> None:
    state = linear_probe()
    assert sum(v.numel() for name, v in state.items() if name.startswith("head.1.")) == 1_409_000
    with torch.device("meta"):
        vit = ViT(infer(state, source="probe"))
    report = fill_backbone(vit, state, source="probe")
    assert not report.missing and not report.unexpected and report.layout == "EVA, linear probe"
    assert {part: len(names) for part, names in report.left_out.items()} == {"classification head": 5}
    head = head_of(state)
    assert head is not None and head[0].shape == (1000, 1408) and pooling_of(state) == "cls"


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_and_the_way_back(name: str) -> None:
    state = CHECKPOINTS[name][0]()
    layout = timm_vit if name == "eva_l_psz14" else eva
    back = layout.from_native(layout.to_native(state))
    # CLIP's text projection is turned over, and back, which makes another tensor of it.
    turned = state.keys() & {"text.text_projection"}
    assert back.keys() == state.keys() and all(back[tensor] is state[tensor] for tensor in state.keys() - turned)
    assert all(back[tensor].shape == state[tensor].shape for tensor in turned)


@pytest.mark.parametrize(
    ("image_size", "patch_size", "resized"),
    [
        (336, 14, {"pos_embed": "(1, 257, 1408) -> (1, 577, 1408)"}),
        (560, 14, {"pos_embed": "(1, 257, 1408) -> (1, 1601, 1408)"}),
        (896, 14, {"pos_embed": "(1, 257, 1408) -> (1, 4097, 1408)"}),
        (
            224,
            16,
            {
                "pos_embed": "(1, 257, 1408) -> (1, 197, 1408)",
                "patch_embed.proj.weight": "(1408, 3, 14, 14) -> (1408, 3, 16, 16)",
            },
        ),
    ],
)
def test_other_resolutions_and_patches(image_size: int, patch_size: int, resized: dict[str, str]) -> None:
    with torch.device("meta"):
        vit = ViT(dataclasses.replace(GIANT, image_size=image_size, patch_size=patch_size), mask_token=True)
    assert fill_backbone(vit, masked_pretraining(), source="eva_psz14.pt").resized == resized
    assert vit.pos_embed.shape[1] == 1 + (image_size // patch_size) ** 2


@pytest.mark.parametrize(
    ("name", "config", "head"),
    [
        ("eva_giant_patch14_224", GIANT, 1000),
        ("eva_giant_patch14_336", dataclasses.replace(GIANT, image_size=336), 1000),
        ("eva_giant_patch14_560", dataclasses.replace(GIANT, image_size=560), 1000),
        ("eva_large_patch14_196", dataclasses.replace(LARGE, image_size=196), 1000),
        ("eva_large_patch14_336", dataclasses.replace(LARGE, image_size=336), 1000),
        ("vit_huge_patch14_224", dataclasses.replace(LARGE, width=1280, depth=32, mlp_width=5120), 0),
        (
            "vit_large_patch14_clip_224",
            dataclasses.replace(LARGE, norm_before_blocks=True, patch_bias=False, norm_epsilon=1e-5),
            1000,
        ),
    ],
)
def test_timms_giants_are_recognised(name: str, config: ViTConfig, head: int) -> None:
    """timm itself says what each of its networks is."""
    import timm

    with torch.device("meta"):
        network = timm.create_model(name)
        vit = ViT(config, final_norm=isinstance(network.norm, torch.nn.LayerNorm))
    state = network.state_dict()
    assert infer(state, source=name) == config and network.blocks[0].attn.num_heads == config.heads
    report = fill_backbone(vit, state, source=name)
    assert not report.missing and not report.unexpected and not report.notes
    found = head_of(state)
    assert (0 if found is None else len(found[0])) == head


def test_eva_clip_in_open_clips_layout_is_the_same_network() -> None:
    """open_clip's own model is the judge of names and shapes."""
    import open_clip

    from unveil.weights import open_clip as layout

    description = open_clip.get_model_config("EVA01-g-14")
    assert description is not None
    description.pop("custom_text", None)
    with torch.device("meta"):
        theirs = open_clip.CustomTextCLIP(**description).state_dict()
    written = layout.from_native(eva.to_native(clip()))
    assert {name: value.shape for name, value in written.items()} == {n: v.shape for n, v in theirs.items()}
    assert infer(theirs, source="EVA01-g-14") == GIANT
    back = eva.from_native(layout.to_native(theirs))
    assert {n: v.shape for n, v in back.items()} == {n: v.shape for n, v in clip().items()}


@pytest.mark.parametrize(
    ("recipe", "whole", "parameters"),
    [
        (mae_base, False, 85_798_656),
        (mae_base, True, 111_907_840),
        (mae_large, False, 303_301_632),
        (mae_large, True, 329_541_888),
    ],
)
def test_mae_s_checkpoints_fit_its_recipes(recipe: Callable[[], PretrainConfig], whole: bool, parameters: int) -> None:
    """Read without a name changed. With the decoder they are what our own pre-training holds, name by name."""
    config = recipe()
    state = released_mae(config.model, whole=whole)
    assert sum(value.numel() for value in state.values()) == parameters
    found = infer(state, source="mae")
    assert found == dataclasses.replace(config.model, position_init="normal")
    with torch.device("meta"):
        vit = ViT(found)
    report = fill_backbone(vit, state, source="mae")
    assert (report.missing, report.unexpected, report.renamed, report.resized, report.notes) == ([], [], {}, {}, [])
    assert (report.layout, set(report.left_out)) == (("MAE", {"decoder"}) if whole else ("timm", set()))
    assert head_of(state) is None
    if whole:
        with torch.device("meta"):
            ours = build_pretext(config).state_dict()
        bare = {name.removeprefix("backbone."): value.shape for name, value in ours.items()}
        assert bare == {name: value.shape for name, value in state.items()}
