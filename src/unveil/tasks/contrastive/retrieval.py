"""Retrieval between images and texts: how often what belongs together is among the nearest."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from unveil.config import UnveilError

RANKS = (1, 5, 10)
"""R@K is measured for these K."""

QUERIES_AT_A_TIME = 256
"""Rows of the table of similarities that are held in memory."""


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """Recall at K, both ways. Shares are 0 to 1."""

    images: int
    """Those with a text of their own; the others are only there to be mistaken for the right ones."""
    texts: int
    text_to_image: dict[int, float]
    """K -> share of the texts whose image is among the K nearest images."""
    image_to_text: dict[int, float]
    """K -> share of the images that have at least one of their texts among the K nearest texts."""

    def numbers(self) -> dict[str, float]:
        """The single numbers, as a task logs them: "text_to_image_r1" and so on."""
        both = {"text_to_image": self.text_to_image, "image_to_text": self.image_to_text}
        return {f"{way}_r{rank}": share for way, shares in both.items() for rank, share in shares.items()}


def retrieval(
    images: Float[Tensor, "i d"], texts: Float[Tensor, "t d"], image_of_text: Int64[Tensor, "t"]
) -> Retrieval:
    """Recall at 1, 5 and 10 by cosine: what the paper measures on Flickr30k and COCO, which have five texts an image.

    Of equal similarities the one that comes first counts as nearer, so that a model that answers everything alike is at
    chance.

    Args:
        images: unit vectors, as `texts`.
        image_of_text: for each text the place of its image; several texts may have the same.

    Raises:
        UnveilError: no texts, a text of an image that is not there, or features that are not finite.
    """
    if not len(texts) or not len(images):
        raise UnveilError("there is nothing to retrieve: give images with at least one text")
    if int(image_of_text.min()) < 0 or int(image_of_text.max()) >= len(images):
        raise UnveilError(f"the images of the texts must be numbers from 0 to {len(images) - 1}")
    for what, features in (("image", images), ("text", texts)):
        bad = ~features.isfinite().all(dim=1)
        if bad.any():
            raise UnveilError(
                f"the features of {int(bad.sum()):,} of {len(bad):,} {what}s are not finite, the first of them number "
                f"{int(bad.int().argmax())}; try --precision fp32 or bf16, or other weights"
            )
    numbers = torch.arange(len(images), device=images.device)
    owners = image_of_text.to(images.device)
    with_text = torch.isin(numbers, owners)
    of_texts = _ranks(texts, owners, images, numbers)
    of_images = _ranks(images[with_text], numbers[with_text], texts, owners)
    return Retrieval(
        images=len(of_images), texts=len(of_texts), text_to_image=_recalls(of_texts), image_to_text=_recalls(of_images)
    )


def nearest(query: Float[Tensor, "d"], features: Float[Tensor, "n d"], count: int) -> list[tuple[int, float]]:
    """Place and cosine of the `count` features nearest to a query, or of all, best first. All are unit vectors.

    Raises:
        UnveilError: a cosine that is not finite.
    """
    cosines = features @ query
    if not cosines.isfinite().all():
        raise UnveilError(
            f"{int((~cosines.isfinite()).sum()):,} of {len(cosines):,} images cannot be compared with the text: "
            "features are not finite; try --precision fp32 or bf16, or other weights"
        )
    scores, places = cosines.sort(descending=True, stable=True)
    return list(zip(places[:count].tolist(), scores[:count].tolist(), strict=True))


def _ranks(
    queries: Float[Tensor, "q d"],
    query_owners: Int64[Tensor, "q"],
    keys: Float[Tensor, "k d"],
    key_owners: Int64[Tensor, "k"],
) -> Int64[Tensor, "q"]:
    """For each query, how many keys are nearer than the nearest that has the same owner."""
    places = torch.arange(len(keys), device=keys.device)
    ranks = []
    for some, owners in zip(queries.split(QUERIES_AT_A_TIME), query_owners.split(QUERIES_AT_A_TIME), strict=True):
        scores = some @ keys.T
        right = owners[:, None] == key_owners
        best = scores.where(right, -torch.inf).amax(dim=1, keepdim=True)
        equal = scores == best
        first = places.where(equal & right, len(keys)).amin(dim=1, keepdim=True)
        ranks.append(((scores > best) | (equal & (places < first))).sum(dim=1))
    return torch.cat(ranks)


def _recalls(ranks: Int64[Tensor, "q"]) -> dict[int, float]:
    return {rank: float((ranks < rank).double().mean()) for rank in RANKS}
