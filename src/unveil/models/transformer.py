"""The pre-norm transformer block of EVA's ViT: attention with its own bias rule, MLP, layer scale, stochastic depth."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unveil.config import ViTConfig

LONGEST_WRITTEN_OUT = 1024
"""Tokens up to which attention may be written out on a processor: its memory grows with their square."""


def attend(
    query: Float[Tensor, "b heads t d"], key: Float[Tensor, "b heads t d"], value: Float[Tensor, "b heads t d"]
) -> Float[Tensor, "b heads t d"]:
    """softmax(q k / sqrt(d)) v by the fused kernel, except where that is slow: training in bfloat16 on a processor.

    There the fused backward took 3 to 7 times as long as plain matrix products (an AMD EPYC with AVX512_BF16, 257 and
    50 tokens), so they are written out, with the softmax in float32.
    """
    on_processor = query.device.type == "cpu" and query.dtype == torch.bfloat16
    if on_processor and torch.is_grad_enabled() and query.shape[2] <= LONGEST_WRITTEN_OUT:
        logits = (query * query.shape[3] ** -0.5) @ key.transpose(2, 3)
        return logits.softmax(dim=-1, dtype=torch.float32).to(value.dtype) @ value
    return F.scaled_dot_product_attention(query, key, value)


class Attention(nn.Module):
    """Global self-attention. EVA gives biases to queries and values only: one on the keys cannot change a softmax."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.qkv = nn.Linear(width, 3 * width, bias=config.qkv_bias == "all")
        self.separate_biases = config.qkv_bias == "query_and_value"
        if self.separate_biases:
            self.q_bias = nn.Parameter(torch.zeros(width))
            self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        query, key, value = self._query_key_value(x)
        return self.proj(attend(query, key, value).transpose(1, 2).flatten(2))

    def attention_map(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b heads t t"]:
        """How much each token (rows) takes from each other: the softmax that the fused kernel never writes down."""
        query, key, _ = self._query_key_value(x)
        # Autocast would round the product back to its own format.
        with torch.autocast(x.device.type, enabled=False):
            logits = query.float() @ key.float().transpose(2, 3) * query.shape[3] ** -0.5
            return logits.softmax(dim=-1)

    def _query_key_value(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        bias: Tensor | None = self.qkv.bias
        if self.separate_biases:
            bias = torch.cat((self.q_bias, torch.zeros_like(self.v_bias), self.v_bias))
        qkv = F.linear(x, self.qkv.weight, bias)
        # Split before swapping heads and tokens: backward then gathers the three gradients in the layout that the
        # linear layer reads, without another copy.
        query, key, value = qkv.unflatten(2, (3, self.heads, -1)).unbind(2)
        return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), with which OpenAI trained CLIP."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class MLP(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.mlp_width)
        self.act = nn.GELU() if config.activation == "gelu" else QuickGELU()
        self.fc2 = nn.Linear(config.mlp_width, config.width)

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)); each branch scaled and, per sample, dropped."""

    def __init__(self, config: ViTConfig, drop_path: float) -> None:
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
        self, x: Float[Tensor, "b t d"], drop_path_noise: Float[Tensor, "b 2"] | None = None
    ) -> Float[Tensor, "b t d"]:
        """`drop_path_noise` in [0, 1), column 0 for the attention branch, 1 for the MLP branch; None drops none."""
        attended = self.attn(self.norm1(x))
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
