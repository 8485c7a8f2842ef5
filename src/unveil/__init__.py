"""Vision foundation models on your own images.

`unveil.load(run_or_name)` gives a trained model to work with (docs/using.md), `unveil.load_clip(run_or_name)` one that
compares images with texts (docs/clip.md). They are imported when they are asked for, so that `import unveil` and the
command line answer at once.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unveil.api import ClipModel, Model, load, load_clip

__all__ = ["ClipModel", "Model", "load", "load_clip"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from unveil import api

        return getattr(api, name)
    raise AttributeError(f"module 'unveil' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
