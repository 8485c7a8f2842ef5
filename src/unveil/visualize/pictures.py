"""Sheets of pictures: masked inputs with the similarity of prediction and target, PCA of patch features, neighbours."""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, UInt8
from PIL import Image
from torch import Tensor

GAP = 4
"""White between pictures, pixels."""
HIDDEN_GREY = 128


def sheet(rows: list[list[UInt8[Tensor, "3 h w"]]], side: int) -> Image.Image:
    """Rows of pictures, each enlarged to `side` pixels without smoothing, on white."""
    width, height = len(rows[0]) * (side + GAP) - GAP, len(rows) * (side + GAP) - GAP
    page = Image.new("RGB", (width, height), "white")
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            tile = Image.fromarray(picture.permute(1, 2, 0).numpy()).resize((side, side), Image.Resampling.NEAREST)
            page.paste(tile, (column * (side + GAP), row * (side + GAP)))
    return page


def masked_image(
    image: UInt8[Tensor, "3 h w"], mask: Bool[Tensor, "n"], grid: tuple[int, int]
) -> UInt8[Tensor, "3 h w"]:
    """The image as the student gets it: hidden patches in grey."""
    hidden = _enlarge(mask.view(1, *grid).float(), image.shape[1:]) > 0.5
    return torch.where(hidden, torch.tensor(HIDDEN_GREY, dtype=torch.uint8), image)


def similarity_map(
    similarity: Float[Tensor, "n"], mask: Bool[Tensor, "n"], grid: tuple[int, int], size: tuple[int, int]
) -> UInt8[Tensor, "3 h w"]:
    """Cosine of prediction and target at the hidden patches, violet (0 or less) to yellow (1); visible ones white."""
    from matplotlib import colormaps

    colours = torch.from_numpy(colormaps["viridis"](similarity.clamp(0, 1).numpy())[:, :3]).float()
    colours[~mask] = 1.0
    picture = colours.T.reshape(3, *grid)
    return (_enlarge(picture, size) * 255).round().to(torch.uint8)


def pca_pictures(
    features: Float[Tensor, "b n d"], grid: tuple[int, int], size: tuple[int, int]
) -> list[UInt8[Tensor, "3 h w"]]:
    """The three directions in which patch features vary most over all the images, as red, green and blue.

    Each direction is stretched to its central 98 %, since a single odd patch would flatten all the others.
    """
    flat = features.reshape(-1, features.shape[2]).float()
    centred = flat - flat.mean(dim=0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    # A direction's sign is arbitrary; fixed so that the same features always give the same colours.
    directions = directions[:3] * directions[:3].sum(dim=1, keepdim=True).sign()
    values = centred @ directions.T
    low, high = values.quantile(0.01, dim=0), values.quantile(0.99, dim=0)
    values = ((values - low) / (high - low).clamp_min(1e-6)).clamp(0, 1)
    pictures = values.view(len(features), *grid, 3).permute(0, 3, 1, 2)
    return [(_enlarge(picture, size) * 255).round().to(torch.uint8) for picture in pictures]


def nearest_images(
    queries: Float[Tensor, "q d"], features: Float[Tensor, "n d"], count: int
) -> Int64[Tensor, "q count"]:
    """Places of the `count` features nearest to each query by cosine, after removing the common mean."""
    centre = features.mean(dim=0)
    return (F.normalize(queries - centre, dim=1) @ F.normalize(features - centre, dim=1).T).topk(count, dim=1).indices


def _enlarge(picture: Float[Tensor, "c rows columns"], size: tuple[int, int] | torch.Size) -> Float[Tensor, "c h w"]:
    return F.interpolate(picture[None], size=tuple(size), mode="nearest")[0]


def loss_curve(steps: list[int], losses: list[float], what: str = "negative cosine similarity") -> Image.Image:
    """The pre-training loss by step; `what` it is."""
    import io

    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.2, 3.2), dpi=110)
    axes.plot(steps, losses, linewidth=0.8, color="#9bb7d4", label="each logged step")
    if len(losses) >= 20:
        window = max(2, len(losses) // 20)
        smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
        axes.plot(steps[window - 1 :], smooth, linewidth=1.8, color="#1f4e79", label=f"mean of {window}")
        axes.legend(frameon=False)
    axes.set_xlabel("step")
    axes.set_ylabel(what)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    pyplot.close(figure)
    return Image.open(buffer).convert("RGB")
