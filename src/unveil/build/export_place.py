"""Where an export is written, and what is said of it."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from unveil.config import UnveilError

Kind = Literal["timm", "open_clip", "safetensors", "onnx", "torch-export"]

FILES: dict[Kind, str] = {
    "timm": "model.safetensors",
    "open_clip": "open_clip_model.safetensors",
    "safetensors": "model.safetensors",
    "onnx": "model.onnx",
    "torch-export": "model.pt2",
}

FOLDERS = ("timm", "open_clip")
"""Those that lie beside a description of their own."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written."""

    file: Path
    card: Path
    difference: float
    """Largest difference of any output from the original's, on random images (and texts)."""
    loading: str
    """Markdown that shows how to load it."""


def places(out: Path, to: Kind) -> tuple[Path, str, str]:
    """Folder, name of the file, name of the card."""
    suffix = Path(FILES[to]).suffix
    if to not in FOLDERS and out.suffix == suffix and not out.is_dir():
        return out.parent, out.name, f"{out.stem}.md"
    return out, FILES[to], "README.md"


def require_free(folder: Path, file: str, card: str, *, overwrite: bool) -> None:
    """Raises UnveilError where an export would not be able to write, or would replace something unasked."""
    if (folder / "checkpoints").is_dir():
        raise UnveilError(f"{folder} is the folder of a run; give --out another one")
    if folder.exists() and not folder.is_dir():
        raise UnveilError(f"{folder} is a file, not a folder; give --out another name")
    if (folder / file).is_dir():
        raise UnveilError(f"{folder / file} is a folder, where the model would be; give --out another place")
    names = (file, card, "config.json", "open_clip_config.json")
    there = next((name for name in names if (folder / name).exists()), None)
    if there is not None and not overwrite:
        raise UnveilError(f"{folder / there} is there already; give --overwrite, or --out another place")


def move_all(work: Path, folder: Path, *, last: str) -> None:
    """What has been written, to where it shall lie; `last`, the card, comes last."""
    for written in sorted(work.iterdir(), key=lambda path: path.name == last):
        os.replace(written, folder / written.name)
