"""How well held-out pairs are told apart: the loss, and recall at 1, both ways."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

QUERIES_AT_A_TIME = 1024
"""Rows of the table of logits that are held in memory."""


def pair_scores(
    images: Float[Tensor, "n d"], texts: Float[Tensor, "n d"], captions: Int64[Tensor, "n"], scale: float
) -> dict[str, float]:
    """Each image picks among the texts of all pairs, each text among the images of all.

    The loss depends on the number of pairs, not on any batch: between runs it compares on the same pairs. For recall a
    text with the very words of the right one, or an image of such a text, is as right.

    Args:
        images: unit vectors, as `texts`.
        captions: equal where the texts are.
        scale: factor on the cosines.
    """
    scores = {"loss": 0.0}
    places = torch.arange(len(images), device=images.device)
    for way, queries, keys in (("image_to_text", images, texts), ("text_to_image", texts, images)):
        found = 0
        for some in places.split(QUERIES_AT_A_TIME):
            logits = scale * queries[some] @ keys.T
            scores["loss"] += F.cross_entropy(logits, some, reduction="sum").item() / (2 * len(images))
            found += int((captions[logits.argmax(dim=1)] == captions[some]).sum())
        scores[f"{way}_r1"] = found / len(images)
    return scores
