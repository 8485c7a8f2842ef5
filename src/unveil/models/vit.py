"""EVA's plain ViT (paper Table 3a; the details are the released code's), open enough for timm's and CLIP's."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from unveil.config import UnveilError, ViTConfig
from unveil.models.recomputation import run_block
from unveil.models.transformer import Block, RelativePositionBias, take


@dataclass(frozen=True)
class Features:
    """What a ViT has to say about its images."""

    cls: Float[Tensor, "b d"]
    """The cls token after the final norm."""
    patches: Float[Tensor, "b n d"]
    """The patch tokens after the final norm, row by row; with `kept` or `only` only those, in its order."""
    grid: tuple[int, int]
    """Rows and columns of patches: n = rows * columns, without `kept` and `only`."""
    intermediates: dict[int, Float[Tensor, "b _ d"]]
    """Tokens, cls first, as block i of those asked for leaves them; the last with `only` as few as that."""
    levels: dict[int, Float[Tensor, "b d h w"]]
    """Feature maps by stride in pixels, where asked for: a plain ViT has one, its patch tokens as an image."""
    attention: dict[int, Float[Tensor, "b heads t t"]]
    """Attention of block i of those asked for: rows are the tokens that look, columns those looked at."""


class PatchEmbedding(nn.Module):
    """A linear map of each patch's pixels, kept as the convolution that released checkpoints name."""

    def __init__(self, config: ViTConfig, channels: int = 3) -> None:
        super().__init__()
        side = config.patch_size
        self.proj = nn.Conv2d(channels, config.width, kernel_size=side, stride=side, bias=config.patch_bias)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        return self.proj(images).flatten(2).transpose(1, 2)


class ViT(nn.Module):
    """Patch embedding, cls token, learned absolute (and perhaps relative) positions, pre-norm blocks, final norm.

    Parameter names are those of the released EVA checkpoints and of timm, so weights need no renaming.

    Args:
        config: Sizes and variants.
        mask_token: Whether there is a token to put in place of hidden patches (masked pre-training).
        final_norm: Without it (fine-tuning on mean-pooled patches normalises after pooling; detection and segmentation
            do not at all) the tokens leave as the last block made them.
        channels: Of the images.
    """

    def __init__(
        self, config: ViTConfig, *, mask_token: bool = False, final_norm: bool = True, channels: int = 3
    ) -> None:
        super().__init__()
        self.config = config
        rows, columns = config.grid
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.width)) if mask_token else None
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + rows * columns, config.width))
        self.patch_embed = PatchEmbedding(config, channels)
        self.norm_pre = self._norm(config.norm_before_blocks)
        self.rel_pos_bias: RelativePositionBias | None = None
        if config.relative_positions == "shared":
            self.rel_pos_bias = RelativePositionBias(config.heads, config.grid)
        last = max(config.depth - 1, 1)
        self.blocks = nn.ModuleList(Block(config, config.drop_path * i / last) for i in range(config.depth))
        self.norm = self._norm(final_norm)
        self._initialize()

    def _norm(self, wanted: bool) -> nn.Module:
        return nn.LayerNorm(self.config.width, eps=self.config.norm_epsilon) if wanted else nn.Identity()

    def _initialize(self) -> None:
        """Released pre-training code: normal cut at one standard deviation, not two; output layers scaled by depth."""
        if self.cls_token.is_meta:
            # There are no values; and to divide there loads sympy, seconds, whenever weights are read.
            return
        std = self.config.init_std
        tokens = [self.cls_token, self.pos_embed, *([] if self.mask_token is None else [self.mask_token])]
        layers = [module for module in self.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
        for weight in tokens + [layer.weight for layer in layers]:
            nn.init.trunc_normal_(weight, std=std, a=-std, b=std)
        for layer in layers:
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        with torch.no_grad():
            for number, block in enumerate(cast(Iterable[Block], self.blocks), start=1):
                block.attn.proj.weight.div_((2.0 * number) ** 0.5)
                block.mlp.fc2.weight.div_((2.0 * number) ** 0.5)
            if self.config.position_init == "sine_cosine":
                table = sine_cosine_positions(self.config.grid, self.config.width)
                # As large as the embedded patches are at the start, so that neither drowns the other: pixels have unit
                # variance, each adds the square of its weight, and sines and cosines have a mean square of one half.
                patch_size = self.patch_embed.proj.weight.square().sum(dim=(1, 2, 3)).mean().sqrt()
                self.pos_embed[0, 1:] = table * patch_size * 2.0**0.5

    def grid_of(self, images: Float[Tensor, "b c h w"]) -> tuple[int, int]:
        """Rows and columns of patches that images of this size make.

        Raises:
            UnveilError: a side is not a multiple of the patch.
        """
        patch = self.config.patch_size
        height, width = images.shape[-2:]
        if height % patch or width % patch:
            raise UnveilError(
                f"an image of {height} x {width} pixels does not divide into patches of {patch} x {patch}"
            )
        return height // patch, width // patch

    def positions(self, grid: tuple[int, int]) -> Float[Tensor, "1 t d"]:
        """The position table for a grid of any size: the patches' part resized bicubically, cls's kept.

        As the released code does it: float32, corners not aligned, no antialiasing.
        """
        if grid == self.config.grid:
            return self.pos_embed
        return resize_positions(self.pos_embed, self.config.grid, grid)

    def embed(
        self,
        images: Float[Tensor, "b c h w"],
        mask: Bool[Tensor, "b n"] | None = None,
        kept: Int64[Tensor, "b k"] | None = None,
    ) -> Float[Tensor, "b t d"]:
        """Tokens that enter the first block, cls first.

        Args:
            images: Normalised, any size that divides into patches.
            mask: True = hidden: the mask token takes the patch's place, before positions are added.
            kept: Numbers of the patches that go on, each with its position (patch dropout); cls always does. None
                keeps all.

        Raises:
            UnveilError: the images do not divide into patches.
        """
        positions = self.positions(self.grid_of(images))
        patches = self.patch_embed(images)
        if mask is not None:
            if self.mask_token is None:
                raise ValueError("this ViT was built without a mask token: ViT(config, mask_token=True)")
            patches = torch.where(mask[:, :, None], self.mask_token, patches)
        cls = self.cls_token.expand(images.shape[0], -1, -1)
        tokens = torch.cat((cls, patches), dim=1) + positions
        if kept is not None:
            tokens = take(tokens, _places_with_cls(kept))
        return self.norm_pre(tokens)

    def finish(self, tokens: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """What is done to the tokens after the last block: the final norm, if there is one."""
        return self.norm(tokens)

    def forward(
        self,
        images: Float[Tensor, "b c h w"],
        mask: Bool[Tensor, "b n"] | None = None,
        *,
        kept: Int64[Tensor, "b k"] | None = None,
        only: Int64[Tensor, "b m"] | None = None,
        drop_path_noise: Float[Tensor, "b depth 2"] | None = None,
        need: tuple[str, ...] = (),
    ) -> Features:
        """Run the network.

        Args:
            images: Normalised, any size that divides into patches.
            mask: True = hidden.
            kept: Numbers of the patches that go through the blocks; None = all, which "levels" and relative positions
                need.
            only: Numbers of the patches whose features are wanted: all go through the blocks, but of the others the
                last block computes keys and values alone. None = all, which "levels" and `kept` need.
            drop_path_noise: Uniform in [0, 1) for each sample, block and branch; None keeps every branch.
            need: What is wanted beside cls and patches: "blocks.3" (tokens as block 3 leaves them), "blocks.3.attn"
                (its attention), "levels" (feature maps).

        Raises:
            UnveilError: the images do not divide into patches; `need` names something that is not there, or needs more
                than is kept.
        """
        wanted_tokens, wanted_attention, wants_levels = self._parse(need)
        if kept is not None and (wants_levels or self.rel_pos_bias is not None):
            raise UnveilError("feature maps and relative positions need all patches: turn patch dropout off")
        if only is not None and (wants_levels or kept is not None):
            raise ValueError("features of some patches only make no feature map, and go with no patch dropout")
        wanted_places = None if only is None else _places_with_cls(only)
        intermediates: dict[int, Tensor] = {}
        attention: dict[int, Tensor] = {}
        grid = self.grid_of(images)
        tokens = self.embed(images, mask, kept)
        bias = None if self.rel_pos_bias is None else self.rel_pos_bias(grid)
        for i, block in enumerate(cast(Iterable[Block], self.blocks)):
            if i in wanted_attention:
                attention[i] = block.attn.attention_map(block.norm1(tokens), bias)
            noise = None if drop_path_noise is None else drop_path_noise[:, i]
            places = wanted_places if i == len(self.blocks) - 1 else None
            tokens = run_block(block, i, self.config.activation_checkpointing, tokens, noise, bias, places)
            if i in wanted_tokens:
                intermediates[i] = tokens
        tokens = self.finish(tokens)
        cls, patches = tokens[:, 0], tokens[:, 1:]
        levels = {self.config.patch_size: patches.transpose(1, 2).unflatten(2, grid)} if wants_levels else {}
        return Features(
            cls=cls, patches=patches, grid=grid, intermediates=intermediates, levels=levels, attention=attention
        )

    def _parse(self, need: tuple[str, ...]) -> tuple[set[int], set[int], bool]:
        tokens: set[int] = set()
        attention: set[int] = set()
        for name in need:
            match name.split("."):
                case ["levels"]:
                    pass
                case ["blocks", i] if i.isdecimal() and int(i) < len(self.blocks):
                    tokens.add(int(i))
                case ["blocks", i, "attn"] if i.isdecimal() and int(i) < len(self.blocks):
                    attention.add(int(i))
                case _:
                    raise UnveilError(
                        f"a ViT with {len(self.blocks)} blocks has no {name!r}: ask for blocks.0 to "
                        f"blocks.{len(self.blocks) - 1} (tokens), blocks.0.attn (attention) or levels"
                    )
        return tokens, attention, "levels" in need

    def layer_groups(self) -> list[list[tuple[str, nn.Parameter]]]:
        """Every parameter once, input side first: embeddings, each block, final norm (empty without one).

        Layer-wise learning-rate decay counts these groups (released code: embeddings 0, blocks 1 to depth, rest after).
        """
        groups: list[list[tuple[str, nn.Parameter]]] = [[] for _ in range(len(self.blocks) + 2)]
        for name, parameter in self.named_parameters():
            if name.startswith("blocks."):
                groups[1 + int(name.split(".")[1])].append((name, parameter))
            else:
                groups[-1 if name.startswith("norm.") else 0].append((name, parameter))
        return groups

    def no_weight_decay(self) -> set[str]:
        """Parameters that are spared beside biases and norms. The mask token is not (released code)."""
        relative = set() if self.rel_pos_bias is None else {"rel_pos_bias.relative_position_bias_table"}
        return {"pos_embed", "cls_token"} | relative

    def shard_units(self) -> list[nn.Module]:
        """The pieces that sharding and recomputation treat as wholes."""
        return list(self.blocks)


def _places_with_cls(patches: Int64[Tensor, "b k"]) -> Int64[Tensor, "b t"]:
    """Where the tokens of these patches are, after cls."""
    return F.pad(patches + 1, (1, 0))


def resize_positions(
    table: Float[Tensor, "1 t d"], old_grid: tuple[int, int], new_grid: tuple[int, int]
) -> Float[Tensor, "1 u d"]:
    """Position table, cls first, made for `old_grid`, for `new_grid`: bicubic, float32, corners not aligned."""
    cls, patches = table[:, :1], table[:, 1:]
    image = patches.transpose(1, 2).unflatten(2, old_grid).float()
    resized = F.interpolate(image, size=new_grid, mode="bicubic", align_corners=False)
    return torch.cat((cls, resized.flatten(2).transpose(1, 2).to(table.dtype)), dim=1)


def sine_cosine_positions(grid: tuple[int, int], width: int) -> Float[Tensor, "n d"]:
    """MAE's table: half of the channels tell the row, half the column, by sines and cosines of falling frequency.

    Raises:
        UnveilError: a width that does not divide by 4.
    """
    if width % 4:
        raise UnveilError(f"sine_cosine positions need a width that is a multiple of 4, not {width}")
    frequencies = 10_000.0 ** -(torch.arange(width // 4) / (width // 4))
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    angles = [places.flatten()[:, None] * frequencies for places in (rows, columns)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)
