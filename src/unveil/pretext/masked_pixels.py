"""RevColV2's masked modelling (reconstruction): tell the hidden units' pixels from the finest level of the last column.

The columns lead back to pixels themselves, so that the head is a norm and a linear layer, and what is pre-trained is
kept whole.
"""

from jaxtyping import Bool, Float, Int64
from torch import Tensor

from unveil.config import MaskedRegression
from unveil.data.normalization import Normalization
from unveil.models.pixel_head import PixelHead
from unveil.models.revcolv2 import RevColV2
from unveil.pretext.masked_modelling import MaskedModelling
from unveil.pretext.targets.base import Target


class MaskedPixels(MaskedModelling):
    """The columns and a pixel head, with the losses of masked modelling; what it calls patches are mask units.

    Masks must hide equally many units of each image: "hidden" is as long as that.
    """

    def __init__(
        self,
        backbone: RevColV2,
        target: Target,
        *,
        seed: int,
        normalization: Normalization,
        objective: MaskedRegression = MaskedRegression(loss="squared"),
    ) -> None:
        super().__init__(
            backbone,
            target,
            seed=seed,
            normalization=normalization,
            objective=objective,
            head=PixelHead(backbone.config),
        )

    def predict_hidden(
        self,
        images: Float[Tensor, "b c h w"],
        mask: Bool[Tensor, "b n"],
        hidden: Int64[Tensor, "b k"],
        drop_path_noise: Float[Tensor, "b depth 2"] | None = None,
    ) -> Float[Tensor, "b k t"]:
        """The head's answer at the units numbered in `hidden`: those of the mask, or all."""
        # No mask hides all units: whoever asks for all does not say how many are hidden.
        count = None if hidden.shape[1] == mask.shape[1] else hidden.shape[1]
        features = self.backbone(images, mask, hidden=count, drop_path_noise=drop_path_noise, need=("levels",))
        return self.head(features.levels[self.backbone.config.patch_size], hidden)
