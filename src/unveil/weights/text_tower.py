"""CLIP's text tower under the names that OpenAI, open_clip and EVA-CLIP give it, to and from `TextTower`.

OpenAI and open_clip's older models have it beside `visual.` without a prefix, EVA-CLIP and open_clip's `custom_text`
under `text.`, where ours always is. What is not of this design (text towers of Hugging Face's) keeps its name.
"""

from torch import Tensor

from unveil.weights.resblocks import native_block_name, released_block_name

TEXT = "text."

_TOP = {
    "token_embedding.weight": "token_embedding.weight",
    "positional_embedding": "positional_embedding",
    "ln_final.weight": "norm.weight",
    "ln_final.bias": "norm.bias",
    "text_projection": "projection.weight",
}
_RELEASED = {ours: theirs for theirs, ours in _TOP.items()}


def native_text_name(name: str) -> str | None:
    """Our name, `text.` included, of a tensor that OpenAI calls `name`; None if it is no part of the text tower."""
    ours = _TOP.get(name) or native_block_name(name)
    return None if ours is None else TEXT + ours


def released_text_name(name: str) -> str | None:
    """OpenAI's name, without prefix, of our `name`; None if OpenAI's text tower has no such part."""
    bare = name.removeprefix(TEXT)
    if bare == name:
        return None
    return _RELEASED.get(bare) or released_block_name(bare)


def turned(name: str, value: Tensor) -> Tensor:
    """From our form to theirs and back: their projection is a matrix that the tokens are multiplied by."""
    return value.t() if name == f"{TEXT}projection.weight" else value
