"""Names of a transformer's blocks as OpenAI's CLIP and open_clip have them, in both towers, to and from ours."""

import re

_PARTS = {
    "ln_1": "norm1",
    "ln_2": "norm2",
    "attn.in_proj_": "attn.qkv.",
    "attn.out_proj": "attn.proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_THEIRS = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)")
_OURS = re.compile(r"blocks\.(\d+)\.(.+)")


def native_block_name(name: str) -> str | None:
    """transformer.resblocks.3.ln_1.weight -> blocks.3.norm1.weight; None where it is of no block of CLIP's."""
    matched = _THEIRS.fullmatch(name)
    for theirs, ours in _PARTS.items():
        if matched is not None and matched[2].startswith(theirs):
            return f"blocks.{matched[1]}.{ours}{matched[2].removeprefix(theirs)}"
    return None


def released_block_name(name: str) -> str | None:
    """The inverse; None where CLIP's blocks have no such part."""
    matched = _OURS.fullmatch(name)
    for theirs, ours in _PARTS.items():
        if matched is not None and matched[2].startswith(ours):
            return f"transformer.resblocks.{matched[1]}.{theirs}{matched[2].removeprefix(ours)}"
    return None
