"""CLIP's text transformer (Radford et al., 2021), with GELU where EVA CLIP-g has it: facts of the released code."""

from collections.abc import Iterable
from typing import cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from unveil.config import TextConfig, UnveilError
from unveil.models.recomputation import run_block
from unveil.models.transformer import Block


class TextTower(nn.Module):
    """Token embedding, learned positions, causal pre-norm blocks, final norm, projection of the end-of-text token."""

    def __init__(self, config: TextConfig, embedding_width: int) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocabulary_size, config.width)
        self.positional_embedding = nn.Parameter(torch.empty(config.context_length, config.width))
        self.blocks = nn.ModuleList(Block(config, drop_path=0.0) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=config.norm_epsilon)
        self.projection = nn.Linear(config.width, embedding_width, bias=False)
        self._initialize()

    def _initialize(self) -> None:
        """OpenAI's released code: deviations by width, those of layers that end a branch by depth too."""
        width, depth = self.config.width, self.config.depth
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        for block in cast(Iterable[Block], self.blocks):
            ending = (2 * width * depth) ** -0.5
            nn.init.normal_(block.attn.qkv.weight, std=width**-0.5)
            nn.init.normal_(block.attn.proj.weight, std=ending)
            nn.init.normal_(block.mlp.fc1.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp.fc2.weight, std=ending)
            for layer in (block.attn.qkv, block.attn.proj):
                nn.init.zeros_(layer.bias)
        nn.init.normal_(self.projection.weight, std=width**-0.5)

    def forward(self, tokens: Int64[Tensor, "n t"]) -> Float[Tensor, "n d"]:
        """Features in the shared space, of any length.

        No token sees a later one, so whatever follows the longest text's end may be cut off: the answers stay.

        Args:
            tokens: each text ends in the vocabulary's highest number; what follows counts nothing.

        Raises:
            UnveilError: more tokens than there are positions.
        """
        length = tokens.shape[1]
        if length > self.config.context_length:
            raise UnveilError(f"texts of {length} tokens do not fit a text tower of {self.config.context_length}")
        states = self.token_embedding(tokens) + self.positional_embedding[:length]
        for number, block in enumerate(self.blocks):
            states = run_block(block, number, self.config.activation_checkpointing, states)
        ends = states[torch.arange(len(tokens), device=tokens.device), tokens.argmax(dim=1)]
        return self.projection(self.norm(ends))

    def layer_groups(self) -> list[list[tuple[str, nn.Parameter]]]:
        """Every parameter once, input side first: embeddings, each block, final norm and projection (released code)."""
        groups: list[list[tuple[str, nn.Parameter]]] = [[] for _ in range(len(self.blocks) + 2)]
        for name, parameter in self.named_parameters():
            if name.startswith("blocks."):
                groups[1 + int(name.split(".")[1])].append((name, parameter))
            else:
                groups[-1 if name.startswith(("norm.", "projection.")) else 0].append((name, parameter))
        return groups

    def no_weight_decay(self) -> set[str]:
        """Parameters that are spared beside biases and norms (released code)."""
        return {"positional_embedding"}

    def shard_units(self) -> list[nn.Module]:
        """The pieces that sharding and recomputation treat as wholes."""
        return list(self.blocks)
