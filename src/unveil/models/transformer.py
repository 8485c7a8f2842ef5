"""The pre-norm transformer block of EVA's ViT and CLIP's text tower: attention, MLP, layer scale, stochastic depth."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from unveil.config import TextConfig, ViTConfig

BlockConfig = ViTConfig | TextConfig
"""What says how a block is made."""

LONGEST_WRITTEN_OUT = 1024
"""Tokens up to which attention may be written out on a processor: its memory grows with their square."""

HEAD_WIDTH_UNIT = 8
"""GPUs' fused kernels (flash, memory-efficient, cuDNN) want heads whose width is a multiple of this: 16 bytes of 16-bit
numbers. EVA-g's 88 is one."""


def take(tokens: Float[Tensor, "b t d"], places: Int64[Tensor, "b k"]) -> Float[Tensor, "b k d"]:
    """Each sample's tokens at these places."""
    return tokens.gather(1, places[:, :, None].expand(-1, -1, tokens.shape[2]))


def attend(
    query: Float[Tensor, "b heads q d"],
    key: Float[Tensor, "b heads t d"],
    value: Float[Tensor, "b heads t d"],
    bias: Float[Tensor, "... heads q t"] | None = None,
    *,
    causal: bool = False,
) -> Float[Tensor, "b heads q d"]:
    """softmax(q k / sqrt(d) + bias) v by the fused kernel, except where that is slow: training in bfloat16 on a
    processor. `causal`, without a bias: each token sees itself and those before it only.

    There the fused backward took 3 to 7 times as long as plain matrix products (an AMD EPYC with AVX512_BF16, 257 and
    50 tokens), so they are written out. The softmax takes and gives bfloat16, and computes in float32 between: to cast
    its table there and back took half of the time of all this, and made gradients no better than 0.005 to 0.0047 of
    relative error.
    """
    on_processor = query.device.type == "cpu" and query.dtype == torch.bfloat16
    if on_processor and torch.is_grad_enabled() and key.shape[2] <= LONGEST_WRITTEN_OUT:
        logits = (query * query.shape[3] ** -0.5) @ key.transpose(2, 3)
        if bias is not None:
            logits = logits + bias.to(logits.dtype)
        if causal:
            later = torch.ones(logits.shape[2:], dtype=torch.bool, device=logits.device).triu(1)
            logits = logits.masked_fill(later, -torch.inf)
        return logits.softmax(dim=-1) @ value
    bias = None if bias is None else bias.to(query.dtype)
    unit = HEAD_WIDTH_UNIT if query.device.type == "cuda" else 1
    return fused_attention(query, key, value, bias, causal=causal, padding=-query.shape[3] % unit)


def fused_attention(
    query: Float[Tensor, "b heads q d"],
    key: Float[Tensor, "b heads t d"],
    value: Float[Tensor, "b heads t d"],
    bias: Float[Tensor, "... heads q t"] | None,
    *,
    causal: bool,
    padding: int,
) -> Float[Tensor, "b heads q d"]:
    """The fused kernel on heads made wider by `padding` zeros, which no product sees; scaled by the width without."""
    width = query.shape[3]
    if padding:
        query, key, value = (F.pad(part, (0, padding)) for part in (query, key, value))
    attended = F.scaled_dot_product_attention(query, key, value, bias, is_causal=causal, scale=width**-0.5)
    return attended[..., :width] if padding else attended


class RelativePositionBias(nn.Module):
    """What each head adds to its logits for the offset between two patches, in all blocks the same.

    The last three rows of the table are for pairs with the cls token: it looks at a patch, a patch at it, it at itself.
    Name and order of the table are those of BEiT and timm.
    """

    def __init__(self, heads: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        rows, columns = grid
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * rows - 1) * (2 * columns - 1) + 3, heads))

    def forward(self, grid: tuple[int, int]) -> Float[Tensor, "heads t t"]:
        """For tokens of a grid of any size, cls first; rows are the tokens that look."""
        table = resize_relative_positions(self.relative_position_bias_table, self.grid, grid)
        return table[_offset_rows(grid, table.device)].permute(2, 0, 1)


def resize_relative_positions(
    table: Float[Tensor, "o heads"], old_grid: tuple[int, int], new_grid: tuple[int, int]
) -> Float[Tensor, "p heads"]:
    """The table of one grid's offsets for another's: bicubic, float32; the cls token's three rows are kept."""
    if old_grid == new_grid:
        return table
    (old_rows, old_columns), (new_rows, new_columns) = old_grid, new_grid
    image = table[:-3].T.unflatten(1, (2 * old_rows - 1, 2 * old_columns - 1))[None].float()
    size = (2 * new_rows - 1, 2 * new_columns - 1)
    resized = F.interpolate(image, size=size, mode="bicubic", align_corners=False)
    return torch.cat((resized[0].flatten(1).T.to(table.dtype), table[-3:]))


def _offset_rows(grid: tuple[int, int], device: torch.device) -> Int64[Tensor, "t t"]:
    """For each pair of tokens, cls first, the row of the table that holds their offset."""
    rows, columns = grid
    patches = torch.arange(rows * columns, device=device)
    row, column = patches // columns, patches % columns
    down, right = row[:, None] - row, column[:, None] - column
    offsets = (2 * rows - 1) * (2 * columns - 1)
    looked_up = F.pad((down + rows - 1) * (2 * columns - 1) + right + columns - 1, (1, 0, 1, 0), value=offsets)
    looked_up[1:, 0] = offsets + 1
    looked_up[0, 0] = offsets + 2
    return looked_up


class Attention(nn.Module):
    """Global self-attention. EVA gives biases to queries and values only: one on the keys cannot change a softmax."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.causal = config.causal
        self.qkv = nn.Linear(width, 3 * width, bias=config.qkv_bias == "all")
        self.separate_biases = config.qkv_bias == "query_and_value"
        if self.separate_biases:
            self.q_bias = nn.Parameter(torch.zeros(width))
            self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        bias: Float[Tensor, "heads t t"] | None = None,
        places: Int64[Tensor, "b k"] | None = None,
    ) -> Float[Tensor, "b _ d"]:
        """With `places` only the tokens there look, and are answered; all are looked at."""
        query, key, value = self._query_key_value(x, places)
        if bias is not None and places is not None:
            bias = bias[:, places].transpose(0, 1)
        return self.proj(attend(query, key, value, bias, causal=self.causal).transpose(1, 2).flatten(2))

    def attention_map(
        self, x: Float[Tensor, "b t d"], bias: Float[Tensor, "heads t t"] | None = None
    ) -> Float[Tensor, "b heads t t"]:
        """How much each token (rows) takes from each other: the softmax that the fused kernel never writes down."""
        query, key, _ = self._query_key_value(x)
        # Autocast would round the product back to its own format.
        with torch.autocast(x.device.type, enabled=False):
            logits = query.float() @ key.float().transpose(2, 3) * query.shape[3] ** -0.5
            return (logits if bias is None else logits + bias.float()).softmax(dim=-1)

    def _query_key_value(self, x: Tensor, places: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        weight = self.qkv.weight
        bias: Tensor | None = self.qkv.bias
        if self.separate_biases:
            bias = torch.cat((self.q_bias, torch.zeros_like(self.v_bias), self.v_bias))
        # Split before swapping heads and tokens: backward then gathers the three gradients in the layout that the
        # linear layer reads, without another copy.
        if places is None:
            query, key, value = F.linear(x, weight, bias).unflatten(2, (3, self.heads, -1)).unbind(2)
        else:
            width = x.shape[2]
            to_query, to_others = (None, None) if bias is None else (bias[:width], bias[width:])
            query = F.linear(take(x, places), weight[:width], to_query).unflatten(2, (self.heads, -1))
            key, value = F.linear(x, weight[width:], to_others).unflatten(2, (2, self.heads, -1)).unbind(2)
        return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), with which OpenAI trained CLIP."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class MLP(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.mlp_width)
        self.act = nn.GELU() if config.activation == "gelu" else QuickGELU()
        self.fc2 = nn.Linear(config.mlp_width, config.width)

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)); each branch scaled and, per sample, dropped."""

    def __init__(self, config: BlockConfig, drop_path: float) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(config.width, eps=config.norm_epsilon)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.width, eps=config.norm_epsilon)
        self.mlp = MLP(config)
        self.has_layer_scale = config.layer_scale is not None
        if config.layer_scale is not None:
            self.gamma_1 = nn.Parameter(torch.full((config.width,), config.layer_scale))
            self.gamma_2 = nn.Parameter(torch.full((config.width,), config.layer_scale))

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        drop_path_noise: Float[Tensor, "b 2"] | None = None,
        bias: Float[Tensor, "heads t t"] | None = None,
        places: Int64[Tensor, "b k"] | None = None,
    ) -> Float[Tensor, "b _ d"]:
        """Run the block.

        Args:
            drop_path_noise: in [0, 1), column 0 for the attention branch, 1 for the MLP branch; None drops none.
            bias: added to the attention's logits.
            places: of the tokens that are wanted, in this order; the others only give their keys and values. None: all.
        """
        attended = self.attn(self.norm1(x), bias, places)
        if places is not None:
            x = take(x, places)
        if self.has_layer_scale:
            attended = attended * self.gamma_1
        x = x + self._drop(attended, drop_path_noise, 0)
        transformed = self.mlp(self.norm2(x))
        if self.has_layer_scale:
            transformed = transformed * self.gamma_2
        return x + self._drop(transformed, drop_path_noise, 1)

    def _drop(self, branch: Tensor, noise: Tensor | None, column: int) -> Tensor:
        """Stochastic depth per sample (Huang et al., 2016), scaled so that the expectation stays."""
        if noise is None or self.drop_path == 0.0:
            return branch
        factor = (noise[:, column] >= self.drop_path).to(branch.dtype) / (1.0 - self.drop_path)
        return branch * factor[:, None, None]
