"""CLIP's vision towers as EVA's teachers: cls dropped, final norm on the patches, projection, no further norm."""

import logging
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from unveil.config import ClipTarget, UnveilError
from unveil.config.teacher import WITHOUT_HUB, require_open_clip, require_open_clip_model
from unveil.data.normalization import MEAN_AND_STD
from unveil.models.transformer import take
from unveil.models.vit import ViT
from unveil.pretext.targets.base import Target
from unveil.pretext.targets.hub import fetch
from unveil.pretext.targets.inference import (
    Grid,
    fast_precision,
    fit_images,
    mean_of_last_blocks,
    resize_features,
    round_matrices,
)
from unveil.pretext.targets.timm import load_open_clip_trunk, load_timm
from unveil.weights.eva import is_eva
from unveil.weights.families import recognize
from unveil.weights.infer import config_in, infer, known_about
from unveil.weights.load import read_backbone
from unveil.weights.names import BACKBONE
from unveil.weights.openai_clip import ClipTower, is_openais_own, tower_from_openai
from unveil.weights.own import is_own
from unveil.weights.read import is_torchscript, read_weights

_log = logging.getLogger(__name__)


class ClipTeacher:
    """A CLIP ViT without its cls token: (b, n, dim of the space shared with text), or of the tower without projection;
    or the mean of its last `layers` blocks' features, each normalised without weights.

    The tower runs at the size where its patches fall on the student's (its patch x the student's grid; 224 px for
    CLIP-L/14 and 16 x 16 patches), its positions resized bicubically; with `resize_grid` at its own size, and its
    features are resized instead.
    """

    def __init__(
        self,
        tower: ClipTower,
        *,
        name: str,
        grid: Grid,
        projected: bool = True,
        layers: int = 1,
        resize_grid: bool = False,
        mean: tuple[float, ...] = MEAN_AND_STD["clip"][0],
        std: tuple[float, ...] = MEAN_AND_STD["clip"][1],
        precision: torch.dtype | None = None,
    ) -> None:
        """`mean`, `std`: of red, green and blue in 0 to 1. `precision` left out: bf16 or fp16 where it is fast.

        Raises:
            UnveilError: a projection is wanted and the weights have none; weights are missing; there are fewer layers.
        """
        if projected and tower.projection is None:
            raise UnveilError(f"the teacher {name} has no projection: use --set target.projected=false")
        if layers > tower.config.depth:
            raise UnveilError(
                f"target.layers is {layers} and the teacher {name} has {tower.config.depth} blocks; give fewer"
            )
        self._averaged = layers if layers > 1 else None
        self._own_grid = tower.config.grid if resize_grid else grid
        patch = tower.config.patch_size
        self._input = (patch * self._own_grid[0], patch * self._own_grid[1])
        self.grid = grid
        self.image_size = self._input[0]
        self._projection = tower.projection if projected else None
        self._bias = tower.projection_bias if projected else None
        self.dim = tower.config.width if self._projection is None else self._projection.shape[1]
        kind = "projected" if projected else "before projection" if layers == 1 else f"mean of {layers} layers"
        self.name = f"{name}/{kind}/{grid[0]}x{grid[1]} at {self._input[0]}x{self._input[1]} px"
        self._mean = 255 * torch.tensor(mean)[:, None, None]
        self._std = 255 * torch.tensor(std)[:, None, None]
        self._precision = precision
        self._place = torch.device("cpu")
        self._vit = _build(tower, name)

    def to(self, place: torch.device | str) -> "ClipTeacher":
        """Move the weights there, and round the matrices among them to what is computed in there."""
        self._place = torch.device(place)
        precision = self._precision or fast_precision(self._place)
        round_matrices(self._vit.to(place), precision)
        self._projection = None if self._projection is None else self._projection.to(place, precision)
        self._bias = None if self._bias is None else self._bias.to(place)
        self._mean, self._std = self._mean.to(place), self._std.to(place)
        return self

    def compile_(self) -> None:
        """Compile the tower, from pixels to features."""
        self._features = torch.compile(self._features, dynamic=False)  # type: ignore[method-assign]

    def __call__(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b n d"]:
        return resize_features(self._infer(images, None), self._own_grid, self.grid)

    def at(self, images: UInt8[Tensor, "b 3 h w"], patches: Int64[Tensor, "b k"]) -> Float[Tensor, "b k d"]:
        """The same of some patches, for which alone the last block's queries, its MLP and what follows are computed."""
        if self._own_grid != self.grid:
            return take(self(images), patches)
        return self._infer(images, patches)

    def _infer(self, images: UInt8[Tensor, "b 3 h w"], only: Int64[Tensor, "b k"] | None) -> Float[Tensor, "b m d"]:
        precision = self._precision or fast_precision(self._place)
        # Autocast, not a network in bf16: the sum that runs through the blocks stays in fp32.
        with torch.inference_mode(), torch.autocast(self._place.type, precision, enabled=precision != torch.float32):
            pixels = (fit_images(images, self._input) - self._mean) / self._std
            features = self._features(pixels, only)
        # Autograd, which may keep targets for the student's backward pass, refuses tensors of inference mode.
        return features.clone()

    def _features(self, pixels: Float[Tensor, "b 3 h w"], only: Int64[Tensor, "b k"] | None) -> Float[Tensor, "b m d"]:
        if self._averaged is None:
            features = self._vit(pixels, only=only).patches
        else:
            features = mean_of_last_blocks(self._vit, pixels, self._averaged, only)
        if self._projection is not None:
            features = features @ self._projection
        if self._bias is not None:
            features = features + self._bias
        return features.float()


def _build(tower: ClipTower, name: str) -> ViT:
    # On the meta device nothing is initialised, which for a large tower takes longer than loading it.
    with torch.device("meta"):
        vit = ViT(tower.config)
    try:
        vit.load_state_dict(tower.state, assign=True)
    except RuntimeError as error:
        raise UnveilError(
            f"the weights of the teacher {name} are not complete: {' '.join(str(error).split())}"
        ) from error
    return vit.eval().requires_grad_(False)


def load_clip(config: ClipTarget, *, grid: Grid) -> Target:
    """The CLIP teacher that `config.name` stands for: a run, a file, MODEL/PRETRAINED, MODEL/FILE, or a timm name.

    Raises:
        UnveilError: no such name, hub not reachable, a file that cannot be read or does not hold a CLIP.
    """
    path = Path(config.name).expanduser()
    if path.exists():
        file, state = read_backbone(path)
        if is_own(state) or is_eva(state):
            return _own_teacher(config, file, state, grid)
        _refuse_trunk(state, file)
        return _teacher(config, state, _activation_of(file, state), grid=grid, mean_and_std={})
    model, _, pretrained = config.name.partition("/")
    if not pretrained:
        return load_timm(
            config.name,
            grid=grid,
            projected=config.projected,
            layers=config.layers,
            resize_grid=config.resize_grid,
        )
    file = Path(pretrained).expanduser()
    if file.is_file():
        require_open_clip_model(model)
        return _load_open_clip(config, model, {}, file, grid)
    require_open_clip(model, pretrained)
    from open_clip.pretrained import get_pretrained_cfg

    released = get_pretrained_cfg(model, pretrained)
    return _load_open_clip(config, model, released, fetch_open_clip(f"the teacher {config.name}", released), grid)


def fetch_open_clip(what: str, released: dict[str, Any], *, otherwise: str = WITHOUT_HUB) -> Path:
    """open_clip names a repository and perhaps a file in it: organisation/repository/[file]. Else as `fetch`."""
    organisation, repository, file = released["hf_hub"].split("/", 2)
    plain = file or "open_clip_pytorch_model.bin"
    safe = "open_clip_model.safetensors" if not file else str(Path(file).with_suffix(".safetensors"))
    return fetch(what, f"{organisation}/{repository}", (safe, plain), otherwise=otherwise)


def _load_open_clip(config: ClipTarget, model: str, released: dict[str, Any], file: Path, grid: Grid) -> Target:
    """`released`: what open_clip knows of these weights (activation, normalisation); nothing of a file of one's own."""
    from open_clip import get_model_config

    description = get_model_config(model)
    vision = description["vision_cfg"]
    state = read_weights(file)
    mean_and_std: dict[str, Any] = {part: tuple(released[part]) for part in ("mean", "std") if part in released}
    if "timm_model_name" in vision:
        return load_open_clip_trunk(
            config.name,
            vision,
            description["embed_dim"],
            state,
            grid=grid,
            projected=config.projected,
            layers=config.layers,
            resize_grid=config.resize_grid,
            **(mean_and_std or dict(zip(("mean", "std"), MEAN_AND_STD["clip"], strict=True))),
        )
    if vision.get("no_ln_pre") or vision.get("attentional_pool") or isinstance(vision["layers"], list):
        raise UnveilError(
            f"the teacher {config.name} is not a CLIP ViT of OpenAI's design (it has "
            "a ResNet, an attentional pool or no norm before its blocks); choose another one"
        )
    quick = released.get("quick_gelu", False) or description.get("quick_gelu", False)
    return _teacher(config, state, "quick_gelu" if quick else "gelu", grid=grid, mean_and_std=mean_and_std)


def _teacher(
    config: ClipTarget,
    state: dict[str, Tensor],
    activation: Literal["gelu", "quick_gelu"],
    *,
    grid: Grid,
    mean_and_std: dict[str, Any],
) -> ClipTeacher:
    return ClipTeacher(
        tower_from_openai(state, activation=activation, source=config.name),
        name=config.name,
        grid=grid,
        projected=config.projected,
        layers=config.layers,
        resize_grid=config.resize_grid,
        **mean_and_std,
    )


def _own_teacher(config: ClipTarget, file: Path, state: dict[str, Tensor], grid: Grid) -> ClipTeacher:
    """A tower that we trained, or EVA-CLIP's. A run goes on: its features are those of the one file."""
    native = recognize(state, source=str(file)).native
    projection, bias = native.get("projection.weight"), native.get("projection.bias")
    mean, std = MEAN_AND_STD[known_about(file).get("normalization") or "clip"]
    trunk = {name.removeprefix(BACKBONE): value.float() for name, value in native.items() if name.startswith(BACKBONE)}
    trunk.pop("mask_token", None)
    return ClipTeacher(
        ClipTower(
            config_in(file) or infer(state, source=str(file)),
            trunk,
            None if projection is None else projection.t().float(),
            None if bias is None else bias.float(),
        ),
        name=str(file),
        grid=grid,
        projected=config.projected,
        layers=config.layers,
        resize_grid=config.resize_grid,
        mean=mean,
        std=std,
    )


def _activation_of(path: Path, state: dict[str, Tensor]) -> Literal["quick_gelu"]:
    """A bare file is taken as OpenAI's, as in the paper; where nothing in it says so, the log does."""
    if not is_torchscript(path) and not is_openais_own(state):
        _log.warning(
            f"{path} is read as OpenAI's CLIP (quick GELU). For weights that open_clip trained with GELU give "
            f"open_clip's model name too, such as ViT-L-14/{path}"
        )
    return "quick_gelu"


def _refuse_trunk(state: dict[str, Tensor], path: Path) -> None:
    if any(name.startswith(("visual.trunk.", "trunk.")) for name in state):
        raise UnveilError(
            f"{path} holds a CLIP with one of timm's networks inside; give open_clip's model name too, "
            f"such as EVA01-g-14/{path}"
        )
