"""Our names of the parts that a file of weights may hold.

`backbone.*` as in `ViT`, `fc_norm.*` and `head.*` as in our tasks (the head is the predictor where there is a
`backbone.mask_token`, else a classifier), `aggregation.*` of a second predictor, `predictor.*` of distillation,
`target.*` of a teacher that learned along with its student, `codebook.*` and others of a tokeniser, `projection.*` for
CLIP's way into the space shared with text. Whatever belongs to none of these keeps the name that its file gives it.
"""

import re
from enum import StrEnum

BACKBONE = "backbone."

_BACKBONE_NAME = re.compile(
    r"(blocks|norm_pre|norm|patch_embed|rel_pos_bias)\.|(cls_token|pos_embed|mask_token|reg_token)$"
)
_TEXT_NAME = re.compile(
    r"text\.|transformer\.|token_embedding\.|ln_final\.|"
    r"(positional_embedding|text_projection|logit_scale|logit_bias|attn_mask|input_resolution|context_length|vocab_size)$"
)
_DECODER_NAME = re.compile(r"decoder_|mask_token$")


class Part(StrEnum):
    """What a file may hold beside the trunk that every vision transformer has."""

    MASK_TOKEN = "mask token"
    FINAL_NORM = "final norm"
    PREDICTOR = "predictor of masked pre-training"
    DISTILLED = "predictor of distillation"
    TEACHER = "teacher that learned along"
    HEAD = "classification head"
    POOLED_NORM = "norm after pooling"
    PROJECTION = "projection into the space shared with text"
    DECODER = "decoder"
    TOKENIZER = "codebook and decoder of a tokeniser"
    TEXT = "text tower"


def is_backbone(name: str) -> bool:
    """Whether a bare name is one of a vision transformer's trunk."""
    return _BACKBONE_NAME.match(name) is not None


def is_text(name: str) -> bool:
    """Whether a name, in ours or any file's layout, belongs to CLIP's text side (temperature and sizes included)."""
    return _TEXT_NAME.match(name) is not None


def part_of(name: str, *, masked: bool) -> Part | None:
    """Which known part beside the trunk our `name` belongs to; None where it is none of them.

    `masked`: whether the network was pre-trained with a mask token, so that its head is a predictor.
    """
    if name == f"{BACKBONE}mask_token":
        return Part.MASK_TOKEN
    if name.startswith(f"{BACKBONE}norm."):
        return Part.FINAL_NORM
    if name.startswith(("head.", "aggregation.")):
        return Part.PREDICTOR if masked else Part.HEAD
    if name.startswith("predictor."):
        return Part.DISTILLED
    if name.startswith("target."):
        return Part.TEACHER
    if name.startswith("fc_norm."):
        return Part.POOLED_NORM
    if name.startswith("projection."):
        return Part.PROJECTION
    if name.startswith(("codebook.", "code_head.", "decoder.", "feature_head.")):
        return Part.TOKENIZER
    if _DECODER_NAME.match(name):
        return Part.DECODER
    return Part.TEXT if is_text(name) else None
