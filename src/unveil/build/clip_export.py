"""Whole CLIPs for other programs: open_clip, and one safetensors file; each checked against the original."""

import json
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from unveil.build.clip_models import build_clip, normalization_of
from unveil.build.deployable import CLOSE
from unveil.build.export_place import FILES, Exported, move_all, places, require_free
from unveil.build.open_clip_models import open_clip_folder
from unveil.config import UnveilError
from unveil.config.serialize import to_json
from unveil.data.normalization import MEAN_AND_STD, Normalization
from unveil.engine import Precision
from unveil.models.clip import Clip
from unveil.weights.clip import ClipWeights
from unveil.weights.open_clip_model import to_open_clip
from unveil.weights.own import native_names
from unveil.weights.read import read_weights
from unveil.weights.write import notes, workplace, write_weights

DESCRIPTION = "open_clip_config.json"


def export_clip(
    found: ClipWeights,
    *,
    to: Literal["open_clip", "safetensors"],
    out: Path,
    source: Path,
    weights: str = "",
    overwrite: bool = False,
) -> Exported:
    """Write a whole CLIP, check that it gives the same answers as it was read, and write its model card.

    Args:
        out: a folder, or (safetensors) a file; the card lies in the folder as README.md, or beside the file.
        source: the run folder or file that the network was loaded from, for the card.
        weights: which of the run's these are, in a sentence for the card.

    Raises:
        UnveilError: `out` cannot be written, open_clip has no such model, or the answers differ by more than `CLOSE`.
    """
    from unveil.weights.model_card import model_card

    folder, file, card = places(out, to)
    require_free(folder, file, card, overwrite=overwrite)
    clip, normalization = build_clip(found), normalization_of(found)
    with workplace(folder) as work:
        if to == "open_clip":
            difference, loading = _open_clip(clip, normalization, work, folder, source)
        else:
            difference, loading = _safetensors(clip, normalization, work / file, folder / file, source)
        text = model_card(
            source,
            title=f"{source.name} for {to}",
            what=f"{_what(clip)} {weights}".strip(),
            loading=loading,
            checked=f"On export the features of random images and texts differed from the original's by at most "
            f"{difference:.1e} (float32, CPU).",
        )
        (work / card).write_text(text, encoding="utf-8")
        move_all(work, folder, last=card)
    return Exported(file=folder / file, card=folder / card, difference=difference, loading=loading)


def _open_clip(clip: Clip, normalization: Normalization, work: Path, folder: Path, source: Path) -> tuple[float, str]:
    """A folder that `open_clip.create_model("local-dir:...")` opens."""
    theirs = to_open_clip(clip.state_dict(), clip.config)
    mean, std = MEAN_AND_STD[normalization]
    images = {
        "size": clip.config.vision.image_size,
        "mode": "RGB",
        "mean": mean,
        "std": std,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
        "fill_color": 0,
    }
    described = {"model_cfg": theirs.description, "preprocess_cfg": images}
    (work / DESCRIPTION).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    known = {"model": to_json(theirs.config), "normalization": normalization}
    write_weights(work / FILES["open_clip"], theirs.state, notes(known, layout="open_clip", source=source))
    opened = open_clip_folder(work, Precision("fp32", torch.device("cpu"))).towers
    with torch.no_grad():
        pixels, tokens = _random_inputs(clip)
        difference = max(
            (opened.encode_images(pixels) - clip.encode_images(pixels)).abs().max().item(),
            (opened.encode_texts(tokens) - clip.encode_texts(tokens)).abs().max().item(),
        )
    if not difference <= CLOSE:
        raise UnveilError(
            f"the exported network gives other features than the original (largest difference {difference:.3g}, at "
            f"most {CLOSE:g} is rounding), so nothing was written; choose --to safetensors"
        )
    return (
        difference,
        f"""```python
import open_clip

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:{folder}")
tokenizer = open_clip.get_tokenizer("local-dir:{folder}")
```""",
    )


def _safetensors(clip: Clip, normalization: Normalization, work: Path, file: Path, source: Path) -> tuple[float, str]:
    """Our own names, with everything that `unveil.load_clip` needs in the file's header."""
    state = clip.state_dict()
    names = native_names(state)
    native = {names[name]: value for name, value in state.items()}
    known = {"model": to_json(clip.config), "normalization": normalization}
    write_weights(work, native, notes(known, layout="native", source=source))
    written = read_weights(work)
    if written.keys() != native.keys() or not all(torch.equal(written[name], native[name]) for name in native):
        raise UnveilError(f"{file}: the disk gave back other numbers than were written; try another one")
    return (
        0.0,
        f"""```python
import unveil

model = unveil.load_clip("{file}")
```""",
    )


def _random_inputs(clip: Clip) -> tuple[Tensor, Tensor]:
    """Normalised images, and texts that end somewhere."""
    generator = torch.Generator().manual_seed(0)
    vision, text = clip.config.vision, clip.config.text
    pixels = torch.randn(2, 3, vision.image_size, vision.image_size, generator=generator)
    tokens = torch.randint(0, text.vocabulary_size - 1, (3, text.context_length), generator=generator)
    ends = torch.randint(0, text.context_length, (3, 1), generator=generator)
    return pixels, tokens.scatter(1, ends, text.vocabulary_size - 1)


def _what(clip: Clip) -> str:
    vision, text = clip.config.vision, clip.config.text
    count = sum(parameter.numel() for parameter in clip.parameters())
    return (
        f"A CLIP, which compares images with texts: a vision transformer {vision.width} wide and {vision.depth} deep, "
        f"{vision.image_size} px in patches of {vision.patch_size} px; a text transformer {text.width} wide and "
        f"{text.depth} deep, {text.context_length} tokens; {count / 1e6:,.1f} M parameters. Trained with unveil."
    )
