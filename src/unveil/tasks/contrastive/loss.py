"""The contrastive loss over a global batch whose pairs lie on several processes (Radford et al., 2021)."""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor


def contrastive_loss(
    images: Float[Tensor, "b d"], texts: Float[Tensor, "b d"], scale: Float[Tensor, ""], *, local: bool
) -> Float[Tensor, ""]:
    """This process's share of the sum over all pairs of the global batch; every process brings equally many.

    Each image picks its text among all texts of the global batch, each text its image: the mean of the two
    cross-entropies. The gradient of the sum over all processes reaches the features of every process.

    Args:
        images: unit vectors.
        texts: those of the same pairs.
        scale: factor on the cosines.
        local: compute the logits of this process's pairs alone, and not those of all pairs on each process. Value and
            gradients of the sum over all processes are the same.
    """
    # Cosines in half precision would be off by several hundredths once they are scaled by 100.
    with torch.autocast(images.device.type, enabled=False):
        images, texts, scale = images.float(), texts.float(), scale.float()
        all_images, all_texts = gather_features(images, texts)
        if local:
            first = len(images) * (dist.get_rank() if dist.is_initialized() else 0)
            partners = torch.arange(first, first + len(images), device=images.device)
            return _cross_entropies(scale * images @ all_texts.T, scale * texts @ all_images.T, partners)
        logits = scale * all_images @ all_texts.T
        partners = torch.arange(len(logits), device=images.device)
        return _cross_entropies(logits, logits.T, partners) * (len(images) / len(logits))


def gather_features(
    images: Float[Tensor, "b d"], texts: Float[Tensor, "b d"]
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
    """Those of all processes, by rank; what any process's loss says of a row comes back to the process that made it."""
    if not dist.is_initialized():
        return images, texts
    # In one exchange: a second one in backward could overtake, on some processes, that of the parameters' gradients.
    gathered_images, gathered_texts = _Gather.apply(torch.cat((images, texts), dim=1)).chunk(2, dim=1)
    return gathered_images, gathered_texts


def _cross_entropies(
    per_image: Float[Tensor, "b n"], per_text: Float[Tensor, "b n"], partners: Int64[Tensor, "b"]
) -> Float[Tensor, ""]:
    """Half the sum of both directions."""
    of_images, of_texts = (F.cross_entropy(logits, partners, reduction="sum") for logits in (per_image, per_text))
    return (of_images + of_texts) / 2


class _Gather(torch.autograd.Function):
    """Rows of all processes, by rank. torch's own with gradients is deprecated in favour of a private one."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        parts = [part.contiguous() for part in gradient.chunk(dist.get_world_size())]
        own = torch.empty_like(parts[0])
        dist.reduce_scatter(own, parts)
        return own
