"""What `--teacher NAME_OR_FILE` may be, and which names exist.

Nothing heavy is imported for the usual names; to check or to correct other names, timm or open_clip is asked.
"""

import difflib
from pathlib import Path

from unveil.config.errors import UnveilError
from unveil.config.pretext import ClipTarget, EmaTarget, EmbeddedTarget, HogTarget, PixelTarget, Target, TimmTarget

SHORT_NAMES: dict[str, Target] = {
    "embedded": EmbeddedTarget(),
    "pixels": PixelTarget(),
    "hog": HogTarget(),
    "ema": EmaTarget(),
    "clip": ClipTarget(),
}

FILE_SUFFIXES = {".pt", ".pth", ".bin", ".safetensors", ".ckpt"}

WITHOUT_HUB = "a local file of weights or `--teacher embedded` needs no network"


def parse_teacher(text: str) -> Target:
    """The target that a teacher's name or file stands for.

    Args:
        text: "embedded", "pixels", "hog", "ema", "clip" (OpenAI's CLIP-L/14); a run of `unveil clip train`; a file of
            CLIP weights; open_clip's MODEL/PRETRAINED or MODEL/FILE; the name of a timm encoder, which for timm's CLIP
            towers ("..._clip_...") includes their projection.

    Raises:
        UnveilError: no such file; no such name: the nearest ones are given.
    """
    if text in SHORT_NAMES:
        return SHORT_NAMES[text]
    path = Path(text).expanduser()
    if path.is_file() or (path / "checkpoints").is_dir():
        return ClipTarget(name=str(path))
    model, _, pretrained = text.partition("/")
    # A path that is not there and a model whose weights lie in a file both have slashes and a suffix.
    if pretrained and Path(pretrained).expanduser().is_file():
        require_open_clip_model(model)
        return ClipTarget(name=text)
    if path.suffix in FILE_SUFFIXES or text.startswith(("/", ".", "~")) or path.is_dir():
        raise UnveilError(f"the teacher {text} is not a file; give a file of CLIP weights or a teacher's name")
    if pretrained:
        require_open_clip(model, pretrained)
        return ClipTarget(name=text)
    require_timm(text)
    return ClipTarget(name=text) if "_clip_" in text else TimmTarget(name=text)


def require_open_clip(model: str, pretrained: str, *, what: str = "the teacher", otherwise: str = WITHOUT_HUB) -> None:
    """Raises UnveilError, with the nearest names, where open_clip has no such MODEL/PRETRAINED."""
    from open_clip import list_pretrained

    known = ["/".join(pair) for pair in list_pretrained()]
    wanted = f"{model}/{pretrained.lower().replace('-', '_')}"
    if wanted not in known:
        tags = [name for name in known if name.startswith(f"{model}/")]
        nearest = tags[:3] if tags else _nearest(f"{model}/{pretrained}", known)
        raise _unknown(f"{model}/{pretrained}", nearest, what, otherwise)


def require_open_clip_model(model: str) -> None:
    """Raises UnveilError, with the nearest names, where open_clip has no such model."""
    from open_clip import list_models

    if model not in list_models():
        raise _unknown(model, _nearest(model, list_models()), "the teacher", WITHOUT_HUB)


def require_timm(name: str, *, what: str = "the teacher", otherwise: str = WITHOUT_HUB) -> None:
    """Raises UnveilError, with the nearest names, where timm has no such model, or no such weights of it."""
    from timm import is_model, list_models, list_pretrained

    architecture, _, tag = name.partition(".")
    pretrained = list_pretrained()
    if is_model(architecture):
        if tag and name not in pretrained:
            tags = [known for known in pretrained if known.startswith(f"{architecture}.")]
            raise _unknown(name, tags[:5], what, otherwise)
        return
    nearest = _nearest(name, pretrained) if tag else _nearest(name, [*SHORT_NAMES, *list_models()])
    raise _unknown(name, nearest, what, otherwise)


def _nearest(name: str, known: list[str]) -> list[str]:
    """Names that contain this one, the shortest first, else those spelt like it."""
    containing = sorted((other for other in known if name.lower() in other.lower()), key=len)
    return (containing or difflib.get_close_matches(name, known, n=3, cutoff=0.5))[:3]


def _unknown(name: str, nearest: list[str], what: str, otherwise: str) -> UnveilError:
    hint = f"; did you mean {' or '.join(nearest)}?" if nearest else ""
    return UnveilError(f"{what} {name} is not known to timm or open_clip{hint} ({otherwise})")
