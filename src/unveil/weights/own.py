"""What our own runs and files look like: `backbone.*` and its heads, or a `Clip` with its two towers."""

from collections.abc import Iterable

from unveil.weights.names import BACKBONE

_PROJECTION, _TOWER, _PATCHES = "visual_projection.", "visual.", "visual.patch_embed.proj.weight"


def is_own(names: Iterable[str]) -> bool:
    """Whether a state dict with these names is one of ours."""
    names = set(names)
    return f"{BACKBONE}patch_embed.proj.weight" in names or _prefix(names) is not None


def native_names(names: Iterable[str]) -> dict[str, str]:
    """Name in the file -> our name in `unveil.weights.names`: those of a `Clip` say `visual` where the others say
    `backbone`, so that its image tower is one like all others."""
    names = list(names)
    prefix = _prefix(set(names))
    if prefix is None:
        return {name: name for name in names}
    native = {}
    for name in names:
        bare = name.removeprefix(prefix)
        if bare.startswith(_PROJECTION):
            native[name] = bare.removeprefix("visual_")
        else:
            native[name] = BACKBONE + bare.removeprefix(_TOWER) if bare.startswith(_TOWER) else bare
    return native


def clip_names(native: Iterable[str]) -> dict[str, str]:
    """Our name -> the name in `Clip`'s state dict."""
    names = {}
    for name in native:
        if name.startswith(BACKBONE):
            names[name] = _TOWER + name.removeprefix(BACKBONE)
        else:
            names[name] = f"visual_{name}" if name.startswith("projection.") else name
    return names


def _prefix(names: set[str]) -> str | None:
    """What a task that holds a `Clip` puts in front of its names; None where there is none in the state dict."""
    for name in names:
        prefix = name.removesuffix(f"{_PROJECTION}weight")
        if prefix != name and prefix + _PATCHES in names:
            return prefix
    return None
