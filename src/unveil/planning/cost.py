"""What the parts of a network cost: parameters, arithmetic, and what autograd keeps of a sample for its backward pass.

Counted from sizes alone. A multiplication and the addition that follows it are two floating-point operations; matrix
products count and nothing else does, as in torch.utils.flop_counter.
"""

from dataclasses import dataclass, fields, replace
from typing import Literal

from unveil.config import TextConfig, ViTConfig
from unveil.config.model import recomputes


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one part; parts add up."""

    parameters: int = 0
    learned: int = 0
    """Parameters that are trained."""
    matrices: int = 0
    """Numbers of the matrices among those trained: autocast makes a 16-bit copy of each."""
    forward: int = 0
    """Floating-point operations for one sample."""
    backward: int = 0
    saved: int = 0
    """Bytes of one sample that wait for the backward pass."""
    recomputed: int = 0
    """With activation checkpointing: bytes that the block whose turn it is in backward has again. Blocks take turns."""

    def __add__(self, other: "Cost") -> "Cost":
        sums = {part.name: getattr(self, part.name) + getattr(other, part.name) for part in fields(self)}
        return Cost(**sums | {"recomputed": max(self.recomputed, other.recomputed)})


@dataclass(frozen=True, kw_only=True)
class Storage:
    """How a step keeps its numbers."""

    number: Literal[2, 4]
    """Bytes of a number in matrix products."""
    stream: Literal[2, 4]
    """Bytes of a number in the sum that runs through the blocks."""
    attention: Literal["fused", "written_out", "published"]
    """"fused": no table of tokens x tokens is kept. "written_out": its softmax. "published": that in float32, and
    rounded, and queries and keys in float32 beside it (released code: `qk_float`)."""


FULL = Storage(number=4, stream=4, attention="fused")
HALF = Storage(number=2, stream=4, attention="fused")
"""Parameters and stream in float32, matrix products in 16 bits by autocast."""
HALF_ON_PROCESSOR = Storage(number=2, stream=4, attention="written_out")
"""See `unveil.models.transformer.attend`."""
PUBLISHED = Storage(number=2, stream=2, attention="published")
"""All of the network in float16, but for its norms and its softmax."""


def linear(
    rows: int,
    inside: int,
    outside: int,
    *,
    bias: bool = True,
    learns: bool = True,
    gradient_to_input: bool = True,
    saved: int = 0,
) -> Cost:
    """`rows` vectors of `inside` numbers times a matrix, with the bytes that backward needs of the vectors."""
    once = 2 * rows * inside * outside
    parameters = inside * outside + (outside if bias else 0)
    return Cost(
        parameters=parameters,
        learned=parameters if learns else 0,
        matrices=inside * outside if learns else 0,
        forward=once,
        backward=once * (learns + gradient_to_input),
        saved=saved if learns else 0,
    )


def block(config: ViTConfig | TextConfig, tokens: int, storage: Storage, *, wanted: int | None = None) -> Cost:
    """One pre-norm block that learns, on `tokens` tokens of a sample. All or `wanted` of them look and are answered."""
    width, mlp, number = config.width, config.mlp_width, storage.number
    looking = tokens if wanted is None else wanted
    biases = {"query_and_value": 2 * width, "all": 3 * width, "none": 0}[config.qkv_bias]
    scales = 0 if config.layer_scale is None else 2 * width
    vectors = Cost(parameters=4 * width + biases + scales, learned=4 * width + biases + scales)
    # Queries with keys, and attention with values; backward each takes two products.
    once = 4 * looking * tokens * width
    attention = Cost(forward=once, backward=2 * once, saved=_attention_saved(config, tokens, looking, storage))
    # Both norms keep their input in float32, with its mean and deviation.
    norms = Cost(saved=(tokens + looking) * (4 * width + 8))
    inputs = linear(tokens, width, 3 * width, bias=False, saved=tokens * number * width)
    if wanted is not None:
        # Choosing some of the normed tokens keeps all of them.
        inputs = linear(tokens, width, 2 * width, bias=False, saved=tokens * (number + 4) * width)
        inputs += linear(looking, width, width, bias=False, saved=looking * number * width)
    activated = 2 if config.activation == "gelu" else 3
    return (
        vectors
        + norms
        + attention
        + inputs
        + linear(looking, width, width, saved=looking * number * width)
        + linear(looking, width, mlp, saved=looking * number * width)
        + linear(looking, mlp, width, saved=looking * number * mlp * activated)
        + Cost(saved=looking * number * scales)
    )


def _attention_saved(config: ViTConfig | TextConfig, tokens: int, looking: int, storage: Storage) -> int:
    """Queries, keys, values, and what stands for their softmax."""
    table = config.heads * looking * tokens
    match storage.attention:
        case "fused":
            return (looking + 2 * tokens) * storage.number * config.width + looking * 4 * config.heads
        case "written_out":
            return (looking + 2 * tokens) * storage.number * config.width + table * storage.number
        case "published":
            return tokens * (4 + 4 + storage.number) * config.width + table * (4 + storage.number)


def blocks(
    config: ViTConfig | TextConfig,
    tokens: int,
    storage: Storage,
    *,
    depth: int | None = None,
    frozen: int = 0,
    wanted: int | None = None,
) -> Cost:
    """`depth` blocks (left out: all), of which the first `frozen` neither learn nor pass gradients on.

    With activation checkpointing a block keeps its input only (the selective one more). With `wanted` the last, which
    must learn, answers only so many tokens.
    """
    depth = config.depth if depth is None else depth
    frozen = min(frozen, depth)
    one, last = block(config, tokens, storage), block(config, tokens, storage, wanted=wanted)
    learning = Cost()
    for number in range(frozen, depth):
        learns = last if number == depth - 1 else one
        if recomputes(config.activation_checkpointing, number):
            kept = storage.stream * tokens * config.width
            if config.activation_checkpointing == "selective":
                # What the three products and the attention of each branch answer.
                kept += storage.number * tokens * (6 * config.width + config.mlp_width)
            learning += replace(learns, saved=kept) + Cost(recomputed=learns.saved)
        else:
            learning += learns
    return learning + _times(Cost(parameters=one.parameters, forward=one.forward), frozen)


def norm(width: int, tokens: int, *, learns: bool = True) -> Cost:
    return Cost(
        parameters=2 * width, learned=2 * width if learns else 0, saved=tokens * (4 * width + 8) if learns else 0
    )


def vit(
    config: ViTConfig,
    storage: Storage,
    *,
    mask_token: bool = False,
    final_norm: bool = True,
    channels: int = 3,
    seen: int | None = None,
    only: int | None = None,
    image_learns: bool = False,
    frozen: int = 0,
    patch_embedding_learns: bool = True,
) -> Cost:
    """The network without a head.

    Args:
        seen: patches that go through the blocks; None: all.
        only: patches whose features are wanted, for which alone the last block computes all that it does; None: all.
        image_learns: its input comes from other layers, which need its gradient.
        frozen: layers from the input side that do not learn: 1 = the embeddings, 2 = also the first block.
        patch_embedding_learns: the patch embedding alone, where `frozen` is 0.
    """
    width, patches = config.width, config.grid[0] * config.grid[1]
    inside = channels * config.patch_size**2
    tokens = 1 + (patches if seen is None else seen)
    positions = width * (2 + patches + mask_token)
    if config.relative_positions == "shared":
        offsets = (2 * config.grid[0] - 1) * (2 * config.grid[1] - 1) + 3
        positions += offsets * config.heads
    total = linear(
        patches,
        inside,
        width,
        bias=config.patch_bias,
        learns=patch_embedding_learns and not frozen,
        gradient_to_input=image_learns,
        saved=storage.number * patches * inside,
    )
    total += Cost(parameters=positions, learned=0 if frozen else positions)
    if config.norm_before_blocks:
        total += norm(width, tokens, learns=not frozen)
    wanted = None if only is None else 1 + only
    total += blocks(config, tokens, storage, frozen=max(0, frozen - 1), wanted=wanted)
    return total + norm(width, wanted or tokens) if final_norm else total


def text_tower(config: TextConfig, storage: Storage, *, frozen: int = 0) -> Cost:
    """CLIP's text transformer without its projection: looking words up is no arithmetic."""
    words = (config.vocabulary_size + config.context_length) * config.width
    total = Cost(parameters=words, learned=0 if frozen else words)
    total += blocks(config, config.context_length, storage, frozen=max(0, frozen - 1))
    return total + norm(config.width, 1)


def only_forward(cost: Cost) -> Cost:
    """The same part, frozen."""
    return Cost(parameters=cost.parameters, forward=cost.forward)


def _times(cost: Cost, count: int) -> Cost:
    return Cost(**{part.name: count * getattr(cost, part.name) for part in fields(cost)})
