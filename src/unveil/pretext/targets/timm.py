"""Any timm encoder as a teacher, and the CLIP towers of timm and open_clip that are timm's networks."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from unveil.config import UnveilError
from unveil.config.teacher import require_timm
from unveil.models.timm_backbone import Network, last_map, stride_of
from unveil.pretext.targets.hub import fetch, require_reachable
from unveil.pretext.targets.inference import (
    Grid,
    fast_precision,
    fit_images,
    grid_error,
    mean_of_layers,
    resize_features,
)

HUB_FILES = ("model.safetensors", "pytorch_model.bin")


class TimmTeacher:
    """A timm network's last features: prefix tokens dropped, maps flattened, after the norm that precedes its head; or
    the mean of its last `layers` blocks' features, each normalised without weights.

    It runs at its stride x the student's grid where its kind allows that (convolutional networks, ViTs and windowed
    transformers whose positions timm can resize), otherwise, and with `resize_grid`, at its own size.
    """

    def __init__(
        self,
        network: Network,
        *,
        name: str,
        grid: Grid,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        projection: nn.Module | None = None,
        layers: int = 1,
        resize_grid: bool = False,
        precision: torch.dtype | None = None,
    ) -> None:
        """`mean`, `std`: of red, green and blue in 0 to 1. `projection`: applied to each feature.

        Raises:
            UnveilError: the features do not fall on the student's patches, or are none for each place in the image; the
                network has not so many layers of one shape.
        """
        self.grid = grid
        self.network = network.eval().requires_grad_(False)
        self._projection = (projection or nn.Identity()).eval().requires_grad_(False)
        self.mean = 255 * torch.tensor(mean)[:, None, None]
        self.std = 255 * torch.tensor(std)[:, None, None]
        self._precision = precision
        self._label = name
        self._layers = layers
        self._input = _own_input(network) if resize_grid else _fitting_input(network, grid)
        self.to("cpu")
        with torch.no_grad():
            probe, own_grid = self._run(torch.zeros(1, 3, *self._input))
        if own_grid != grid and not resize_grid:
            raise grid_error(name, own_grid, grid)
        self.dim = probe.shape[2]
        self.image_size = self._input[0]
        kind = "projected" if projection is not None else "features" if layers == 1 else f"mean of {layers} layers"
        self.name = f"{name}/{kind}/{grid[0]}x{grid[1]} at {self._input[0]}x{self._input[1]} px"

    def to(self, place: torch.device | str) -> "TimmTeacher":
        self._place = torch.device(place)
        self.network.to(place)
        self._projection.to(place)
        self.mean, self.std = self.mean.to(place), self.std.to(place)
        return self

    @torch.no_grad()
    def __call__(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b n d"]:
        features, own_grid = self._run((fit_images(images, self._input) - self.mean) / self.std)
        return resize_features(features, own_grid, self.grid)

    def _run(self, pixels: Float[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b n d"], Grid]:
        precision = self._precision or fast_precision(self._place)
        with torch.autocast(self._place.type, precision, enabled=precision != torch.float32):
            if self._layers > 1:
                cells = self._mean_of_last(pixels)
            else:
                cells = self._projection(last_map(self.network, pixels, self._label))
        return cells.flatten(1, 2).float(), (cells.shape[1], cells.shape[2])

    def _mean_of_last(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b rows columns d"]:
        try:
            maps = self.network.forward_intermediates(
                pixels, indices=self._layers, intermediates_only=True, output_fmt="NCHW"
            )
        except (AssertionError, AttributeError, NotImplementedError, TypeError) as error:
            raise UnveilError(
                f"the teacher {self._label} has no {self._layers} layers to be averaged ({error}); lower target.layers"
            ) from error
        if len({cells.shape for cells in maps}) > 1 or len(maps) != self._layers:
            raise UnveilError(
                f"the last {self._layers} layers of the teacher {self._label} are not of one shape "
                f"({', '.join(str(tuple(cells.shape[1:])) for cells in maps)}); lower target.layers"
            )
        return mean_of_layers([cells.permute(0, 2, 3, 1) for cells in maps])


def load_timm(
    name: str,
    *,
    grid: Grid,
    projected: bool,
    pretrained: bool = True,
    file: str | None = None,
    layers: int = 1,
    resize_grid: bool = False,
) -> TimmTeacher:
    """A timm network by name, with weights from the hub, from a local file, or random ones.

    Args:
        projected: Apply its head to each feature, which in timm's CLIP towers is the projection.
        layers: More than 1: the mean of so many.

    Raises:
        UnveilError: no such name, hub not reachable, weights that do not fit, a head that is no projection.
    """
    from timm.models import create_model, get_pretrained_cfg

    require_timm(name)
    released: Any = get_pretrained_cfg(name)
    notes = " ".join(released.notes or ()) if released else ""
    if pretrained and not file and "QuickGELU" in notes and "quickgelu" not in name:
        architecture, _, tag = name.partition(".")
        right = f"{architecture.replace('_clip_', '_clip_quickgelu_')}{'.' if tag else ''}{tag}"
        raise UnveilError(f"the weights of {name} were trained with quick GELU: use the teacher {right}")
    overlay: dict[str, Any] = {}
    if file:
        if not Path(file).expanduser().is_file():
            raise UnveilError(f"target.file {file} is not a file")
        overlay = {"file": str(Path(file).expanduser()), "custom_load": file.endswith(".npz")}
    elif pretrained and (released is None or not (released.hf_hub_id or released.url)):
        raise UnveilError(f"timm has no weights for {name}: give a file with --set target.file=FILE")
    elif pretrained and released.hf_hub_id:
        overlay = {"file": str(fetch(f"the teacher {name}", released.hf_hub_id, HUB_FILES)), "custom_load": False}
    elif pretrained:
        require_reachable(f"the teacher {name}", released.url)
    try:
        network: Network = create_model(name, pretrained=pretrained or bool(file), pretrained_cfg_overlay=overlay)
    except Exception as error:
        if not (pretrained or file):
            raise
        reason = " ".join(str(error).split())[:300]
        raise UnveilError(f"the weights {overlay.get('file', '')} do not fit the teacher {name}: {reason}") from error
    return TimmTeacher(
        network,
        name=name if not file else f"{name} from {file}",
        grid=grid,
        mean=network.pretrained_cfg["mean"],
        std=network.pretrained_cfg["std"],
        projection=_projection(name, network, None) if projected else None,
        layers=layers,
        resize_grid=resize_grid,
    )


def load_open_clip_trunk(
    name: str,
    vision: dict[str, Any],
    dim: int,
    state: dict[str, Tensor],
    *,
    grid: Grid,
    projected: bool,
    layers: int = 1,
    resize_grid: bool,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> TimmTeacher:
    """A CLIP of open_clip's whose vision tower is a timm network.

    Args:
        vision: open_clip's `vision_cfg`.
        dim: Of the space shared with text.
        state: With or without `visual.` in front.

    Raises:
        UnveilError: weights that do not fit; a projection that works on the pooled image only.
    """
    from open_clip.timm_model import TimmModel

    tower = TimmModel(
        vision["timm_model_name"],
        dim,
        image_size=vision.get("image_size", 224),
        pool=vision.get("timm_pool", "avg"),
        proj=vision.get("timm_proj", "linear"),
        proj_bias=vision.get("timm_proj_bias", False),
    )
    if any(key.startswith("visual.") for key in state):
        state = {key.removeprefix("visual."): value for key, value in state.items() if key.startswith("visual.")}
    try:
        tower.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UnveilError(f"the weights of the teacher {name} do not fit its model: {reason}") from error
    return TimmTeacher(
        tower.trunk,
        name=name,
        grid=grid,
        mean=mean,
        std=std,
        projection=_projection(name, tower.trunk, tower.head) if projected else None,
        layers=layers,
        resize_grid=resize_grid,
    )


def _projection(name: str, network: Network, head: nn.Module | None) -> nn.Module:
    """What follows pooling, for use on each feature: the network's own last layer, then open_clip's head."""
    classifier = network.get_classifier()
    steps = [*([classifier] if isinstance(classifier, nn.Linear) else []), *(head.children() if head else [])]
    if not steps or getattr(network, "attn_pool", None) is not None or any(_pools(step) for step in steps):
        raise UnveilError(
            f"the teacher {name} has no projection for single patches: its features before pooling are had with "
            "--set target.projected=false"
        )
    return nn.Sequential(*steps)


def _pools(step: nn.Module) -> bool:
    return "AttentionPool" in type(step).__name__


def _own_input(network: Network) -> tuple[int, int]:
    _, height, width = network.pretrained_cfg["input_size"]
    return height, width


def _fitting_input(network: Network, grid: Grid) -> tuple[int, int]:
    """Stride x grid where the network takes that size, after its positions or windows are resized; else its own."""
    stride = stride_of(network)
    wanted = (stride * grid[0], stride * grid[1])
    if not network.pretrained_cfg["fixed_input_size"]:
        return wanted
    try:
        network.set_input_size(img_size=wanted)
    except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError):
        # Windows that do not divide the wanted size, or a kind that timm cannot resize: the grids are compared next.
        return _own_input(network)
    return wanted
