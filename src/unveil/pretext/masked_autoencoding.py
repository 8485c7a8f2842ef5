"""MAE (He et al., 2022): the network sees visible patches alone, and a light decoder tells the hidden ones' pixels."""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from unveil.config import MaskedAutoencoding
from unveil.data.normalization import Normalization
from unveil.models.recomputation import run_block
from unveil.models.transformer import Block
from unveil.models.vit import Features, ViT, sine_cosine_positions
from unveil.pretext.masked_modelling import HiddenRegression
from unveil.pretext.targets.base import Target

TOKEN_STD = 0.02
"""Of the cls token and the mask token, at the start."""


class MaskedAutoencoder(HiddenRegression):
    """Encoder, decoder, squared differences (section 3; what it leaves open is the released code's).

    The encoder's weights and positions begin as MAE's do. Positions of both are fixed; a classifier that starts from
    the encoder learns its own from there, as in the released code. Beside `backbone.`, names are those of the released
    checkpoints. Masks must hide equally many patches of each image: "hidden" is as long as that.
    """

    backbone: ViT

    def __init__(
        self,
        backbone: ViT,
        target: Target,
        *,
        seed: int,
        normalization: Normalization,
        objective: MaskedAutoencoding = MaskedAutoencoding(),
    ) -> None:
        super().__init__(backbone, target, seed=seed, normalization=normalization)
        config = objective.decoder(backbone.config)
        self.activation_checkpointing = config.activation_checkpointing
        self.decoder_embed = nn.Linear(backbone.config.width, config.width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.decoder_pos_embed = nn.Parameter(fixed_positions(config.grid, config.width), requires_grad=False)
        self.decoder_blocks = nn.ModuleList(Block(config, drop_path=0.0) for _ in range(config.depth))
        self.decoder_norm = nn.LayerNorm(config.width, eps=config.norm_epsilon)
        self.decoder_pred = nn.Linear(config.width, target.dim)
        self._initialize()

    @torch.no_grad()
    def _initialize(self) -> None:
        """Released code: matrices by Xavier's rule, the patch embedding as the matrix that it is; biases 0."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(layer.weight.flatten(1))
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        for token in (self.backbone.cls_token, self.mask_token):
            nn.init.normal_(token, std=TOKEN_STD)
        config = self.backbone.config
        self.backbone.pos_embed.copy_(fixed_positions(config.grid, config.width))
        self.backbone.pos_embed.requires_grad_(False)

    def predict_hidden(
        self,
        images: Float[Tensor, "b c h w"],
        mask: Bool[Tensor, "b n"],
        hidden: Int64[Tensor, "b k"],
        drop_path_noise: Float[Tensor, "b depth 2"] | None = None,
    ) -> Float[Tensor, "b k t"]:
        """The decoder's answer at the patches numbered in `hidden`: those of the mask, or all."""
        # No mask hides all patches: whoever asks for all does not say how many are hidden.
        count = mask.shape[1] - hidden.shape[1] or int((~mask[0]).sum())
        visible = (~mask).to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :count]
        features = self.backbone(images, kept=visible, drop_path_noise=drop_path_noise)
        return self.decode(features, visible, hidden)

    def decode(
        self, features: Features, visible: Int64[Tensor, "b v"], hidden: Int64[Tensor, "b k"]
    ) -> Float[Tensor, "b k t"]:
        """From the encoder's answer for the visible patches to the pixels of the hidden ones.

        All patches go through the decoder, but of those that nobody asks for its last block computes keys and values
        alone.
        """
        tokens = self.decoder_embed(torch.cat((features.cls[:, None], features.patches), dim=1))
        cls, told = tokens.to(self.mask_token.dtype).tensor_split([1], dim=1)
        rows, columns = features.grid
        patches = self.mask_token.expand(len(told), rows * columns, -1)
        patches = patches.scatter(1, visible[:, :, None].expand_as(told), told)
        x = torch.cat((cls, patches), dim=1) + self.decoder_pos_embed
        for number, block in enumerate(self.decoder_blocks):
            places = hidden + 1 if number == len(self.decoder_blocks) - 1 else None
            x = run_block(block, number, self.activation_checkpointing, x, None, None, places)
        return self.decoder_pred(self.decoder_norm(x))

    def losses(self, predictions: Float[Tensor, "b k t"], wanted: Float[Tensor, "b k t"]) -> Float[Tensor, "b k"]:
        """The mean over a patch's pixels and colours of the squared differences."""
        return (predictions - wanted).square().mean(dim=-1)

    def shard_units(self) -> list[nn.Module]:
        """With the decoder's blocks."""
        return super().shard_units() + list(self.decoder_blocks)

    def no_weight_decay(self) -> set[str]:
        """None beside biases and norms: the released code decays the tokens in pre-training, and not in fine-tuning."""
        return set()


def fixed_positions(grid: tuple[int, int], width: int) -> Float[Tensor, "1 t d"]:
    """MAE's table, cls first, which gets zeros. Its first half tells the column."""
    table = sine_cosine_positions(grid, width).roll(width // 2, dims=1)
    return nn.functional.pad(table, (0, 0, 1, 0))[None]
