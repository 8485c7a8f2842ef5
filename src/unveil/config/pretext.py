"""What is hidden, and what must be predicted."""

from dataclasses import dataclass, replace
from typing import Literal

from unveil.config.errors import UnveilError
from unveil.config.model import ViTConfig


@dataclass(frozen=True, kw_only=True)
class BlockMasking:
    """Block-wise masking of BEiT and EVA: rectangles are hidden until `count` patches are, or no rectangle fits.

    So the number hidden varies a little below `count` (released code: 105 of 256 at most, 104.44 on average).
    """

    ratio: float = 0.4
    count: int | None = None
    """Patches hidden at most; left out: ratio x patches, rounded."""
    min_block: int | None = None
    """Smallest area a rectangle aims at, patches; left out: a sixteenth of the grid, 16 at most."""
    min_aspect: float = 0.3
    """Rectangles' height / width is drawn log-uniformly from [min_aspect, 1 / min_aspect]."""
    exact: bool = False
    """Where no rectangle fits any more, hide single patches until `count` are hidden (BEiT v2)."""

    def __post_init__(self) -> None:
        _check_ratio(self.ratio)
        if self.count is not None and self.count < 1:
            raise UnveilError(f"masking.count {self.count} hides nothing; give at least 1")
        if self.min_block is not None and self.min_block < 1:
            raise UnveilError(f"masking.min_block is {self.min_block}; it must be at least 1")
        if not 0.0 < self.min_aspect <= 1.0:
            raise UnveilError(f"masking.min_aspect {self.min_aspect} is not in (0, 1]")


@dataclass(frozen=True, kw_only=True)
class RandomMasking:
    """Uniform random masking of MAE: exactly round(ratio x patches) are hidden."""

    ratio: float = 0.75

    def __post_init__(self) -> None:
        _check_ratio(self.ratio)


def _check_ratio(ratio: float) -> None:
    if not 0.0 < ratio < 1.0:
        raise UnveilError(f"masking.ratio {ratio} must lie between 0 and 1: some patches hidden, some seen")


@dataclass(frozen=True, kw_only=True)
class ClipTarget:
    """Patch features of a CLIP vision tower as EVA uses them: cls dropped, final norm on the patches, projection.

    `name` is open_clip's MODEL/PRETRAINED ("ViT-L-14/openai"), or a local file of OpenAI's or open_clip's weights.
    """

    name: str = "ViT-L-14/openai"
    projected: bool = True
    """Projected features did better than those before the projection for base and large (a maintainer of EVA)."""
    layers: int = 1
    """More than 1: the mean of the last so many blocks' features, each normalised first; without projection."""
    resize_grid: bool = False
    """Resize the teacher's feature grid when it does not fit the student's; otherwise that is an error."""

    def __post_init__(self) -> None:
        _check_layers(self.layers)
        if self.layers > 1 and self.projected:
            raise UnveilError("target.layers averages features before the projection; give target.projected=false, too")


@dataclass(frozen=True, kw_only=True)
class TimmTarget:
    """Patch features of any timm encoder by name ("vit_base_patch14_dinov2.lvd142m"), after its final norm."""

    name: str
    pretrained: bool = True
    file: str | None = None
    """Weights from a local file instead of the hub."""
    layers: int = 1
    """More than 1: the mean of the last so many blocks' features, each normalised first."""
    resize_grid: bool = False

    def __post_init__(self) -> None:
        _check_layers(self.layers)


def _check_layers(layers: int) -> None:
    if layers < 1:
        raise UnveilError(f"target.layers is {layers}; give at least 1")


@dataclass(frozen=True, kw_only=True)
class EmbeddedTarget:
    """The teacher that needs no download: EfficientNet-Lite0's last map, one cell on each patch of the student."""

    normalization: Literal["none", "centre", "standardize"] = "centre"
    """Of each channel, by fixed statistics. Its features are never negative and so all point the same way; with the
    common direction taken out a small student learned most (docs/lab_book.md)."""


@dataclass(frozen=True, kw_only=True)
class PixelTarget:
    """The hidden patches' own pixels."""

    normalize: bool = True
    """Subtract each patch's mean and divide by its standard deviation (MAE)."""
    normalized_side: int | None = None
    """Normalise squares of so many pixels inside a patch one by one; None: the patch as a whole."""

    def __post_init__(self) -> None:
        if self.normalized_side is None:
            return
        if not self.normalize:
            raise UnveilError("target.normalized_side says what is normalised, and target.normalize is off; give one")
        if self.normalized_side < 2:
            raise UnveilError(f"target.normalized_side is {self.normalized_side}; a square has at least 2 x 2 pixels")


@dataclass(frozen=True, kw_only=True)
class HogTarget:
    """Histograms of oriented gradients of each patch (MaskFeat, section 3): no teacher's weights at all."""

    orientations: int = 9
    """Bins in half a turn."""
    cells: int = 2
    """Histograms along a patch's side: MaskFeat's cells of 8 pixels are 2 along a patch of 16."""

    def __post_init__(self) -> None:
        if min(self.orientations, self.cells) < 1:
            raise UnveilError("target.orientations and target.cells must be at least 1")


@dataclass(frozen=True, kw_only=True)
class EmaTarget:
    """The student's own running average, which sees the whole image (data2vec): no other network, no labels anywhere.

    Its feature of a patch is the mean of what its last blocks say, each normalised; only masked regression has an
    answer to it that is not the same for every image.
    """

    decay: float = 0.9998
    """Of the average, each step (data2vec's for a ViT-B; short runs need less)."""
    layers: int = 6
    """Blocks from the last one on that are averaged."""

    def __post_init__(self) -> None:
        _check_layers(self.layers)
        if not 0.0 <= self.decay < 1.0:
            raise UnveilError(f"target.decay {self.decay} is not in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class MaskedRegression:
    """EVA's pretext task (paper section 2.2): regress the target at the patches that are hidden."""

    loss: Literal["cosine", "smooth_l1", "squared"] = "cosine"
    """Negative cosine similarity (EVA); or, averaged over a feature's numbers, smooth L1 (data2vec) or squared
    differences (MAE, MaskFeat)."""
    beta: float = 2.0
    """Of smooth L1: differences below it count by their square (data2vec's for images)."""

    def __post_init__(self) -> None:
        _check_beta(self.beta)


@dataclass(frozen=True, kw_only=True)
class MaskedAutoencoding:
    """MAE's pretext task (He et al. 2022): the network sees the visible patches alone, and a light decoder, which no
    other task takes along, tells the hidden ones' pixels by squared differences. Sizes are MAE's.

    It says what the network begins with: positions are fixed sines and cosines, whatever model.position_init is.
    """

    decoder_width: int = 512
    decoder_depth: int = 8
    """Blocks."""
    decoder_heads: int = 16

    def __post_init__(self) -> None:
        if min(self.decoder_width, self.decoder_depth, self.decoder_heads) < 1:
            raise UnveilError("objective.decoder_width, decoder_depth and decoder_heads must be at least 1")
        if self.decoder_width % 4:
            raise UnveilError(
                f"objective.decoder_width {self.decoder_width} is not a multiple of 4, as sines and cosines of row and "
                f"column need it; try {self.decoder_width // 4 * 4 or 4}"
            )
        if self.decoder_width % self.decoder_heads:
            raise UnveilError(
                f"objective.decoder_width {self.decoder_width} is not a multiple of objective.decoder_heads "
                f"{self.decoder_heads}"
            )

    def decoder(self, model: ViTConfig) -> ViTConfig:
        """The decoder of a network: as it is, but for its size and stochastic depth."""
        width, depth, heads = self.decoder_width, self.decoder_depth, self.decoder_heads
        return replace(model, width=width, depth=depth, heads=heads, mlp_width=4 * width, drop_path=0.0)


@dataclass(frozen=True, kw_only=True)
class FeatureDistillation:
    """The pilot study's rival (paper Table 2b; Wei et al. 2022): the student sees the whole image and regresses the
    target at every patch by smooth L1, through one linear layer.

    The target is whitened, each feature by its own mean and deviation. Drop path is the student's alone
    (model.drop_path); relative positions are a setting of it, too (model.relative_positions).
    """

    whiten: bool = True
    beta: float = 2.0
    """Of smooth L1: differences below it count by their square."""

    def __post_init__(self) -> None:
        _check_beta(self.beta)


def _check_beta(beta: float) -> None:
    if beta <= 0.0:
        raise UnveilError(f"objective.beta {beta} must be more than 0")


@dataclass(frozen=True, kw_only=True)
class VectorQuantizedDistillation:
    """VQ-KD of BEiT v2: a tokeniser, whose decoder must tell the target of every patch from one code for each.

    The run's network is the tokeniser's encoder. Nothing is hidden from it. Sizes and rates are BEiT v2's.
    """

    codes: int = 8192
    """Size of the codebook."""
    code_dim: int = 32
    """Length of a code."""
    codebook_decay: float = 0.99
    """Of the running averages that the codes are: each step moves a code by the rest towards its patches' mean."""
    revive_below: float = 0.1
    """A code taken less than this share of the average code's use is dead, and becomes some patch of the step's batch.
    0 revives none."""
    commitment: float = 1.0
    """Weight of the term that pulls the encoder's answers towards their codes."""
    decoder_depth: int = 3
    """Blocks of the decoder, which are as wide as the encoder's."""

    def __post_init__(self) -> None:
        if self.codes < 2 or self.code_dim < 1 or self.decoder_depth < 1:
            raise UnveilError("objective.codes must be at least 2, code_dim and decoder_depth at least 1")
        if not 0.0 < self.codebook_decay < 1.0:
            raise UnveilError(f"objective.codebook_decay {self.codebook_decay} must lie between 0 and 1")
        if not 0.0 <= self.revive_below < 1.0:
            raise UnveilError(f"objective.revive_below {self.revive_below} is not in [0, 1)")
        if self.commitment < 0.0:
            raise UnveilError(f"objective.commitment {self.commitment} must not be less than 0")


@dataclass(frozen=True, kw_only=True)
class PatchAggregation:
    """BEiT v2's second head, which teaches the cls token: some more blocks see it as the last block leaves it, and the
    patches as an early block leaves them, and must tell the hidden codes from that. Both heads share norm and weights.
    """

    after_block: int = 9
    """Blocks that the early patches have passed."""
    depth: int = 2
    """Blocks of the second head."""

    def __post_init__(self) -> None:
        if min(self.after_block, self.depth) < 1:
            raise UnveilError("objective.aggregation.after_block and depth must be at least 1")


@dataclass(frozen=True, kw_only=True)
class MaskedTokenPrediction:
    """BEiT's pretext task: tell the codes that a frozen tokeniser gives to the patches that are hidden (cross-entropy).

    The configuration's `target` has no part in it: the tokeniser has learned from one.
    """

    tokenizer: str = "runs/vqkd_base"
    """The folder of a run of VectorQuantizedDistillation, or a checkpoint in one."""
    aggregation: PatchAggregation | None = None


MaskedObjective = MaskedRegression | MaskedAutoencoding | MaskedTokenPrediction
"""Those for which patches are hidden."""
Objective = MaskedObjective | FeatureDistillation | VectorQuantizedDistillation
Masking = BlockMasking | RandomMasking
FrozenTarget = ClipTarget | TimmTarget | EmbeddedTarget | PixelTarget | HogTarget
Target = FrozenTarget | EmaTarget
