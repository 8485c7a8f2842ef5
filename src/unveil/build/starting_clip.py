"""What a CLIP starts from: towers from different places, or a whole CLIP."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from unveil.build.starting_weights import network_in
from unveil.config import ClipModelConfig, ContrastiveConfig, TextConfig, UnveilError
from unveil.config.revcolv2 import require_vit
from unveil.config.serialize import from_json
from unveil.data.normalization import Normalization
from unveil.models.clip import Clip
from unveil.weights.clip import UNTOLD, read_clip
from unveil.weights.clip_text import load_text, text_config_of
from unveil.weights.families import recognize
from unveil.weights.infer import clip_config_in, is_clip, known_about
from unveil.weights.load import load_backbone, read_backbone
from unveil.weights.report import LoadReport


def start_clip(clip: Clip, config: ContrastiveConfig) -> list[LoadReport]:
    """Fill a CLIP from `config.init_from`, or its towers from `config.vision_init` and `config.text_init`.

    Towers from different places share no space yet: their projections and the temperature start anew (released
    command).

    Raises:
        UnveilError: nothing to read, or weights of another network.
    """
    if config.init_from is not None:
        return [_load_whole(clip, Path(config.init_from).expanduser())]
    reports = []
    if config.vision_init is not None:
        with _calling_it_vision():
            reports.append(load_backbone(clip.visual, Path(config.vision_init).expanduser()))
    if config.text_init is not None:
        reports.append(load_text(clip.text, Path(config.text_init).expanduser(), projection=False))
    return reports


def fit_clip(config: ContrastiveConfig, *, run: Path, settings: Sequence[str] = ()) -> ContrastiveConfig:
    """The configuration with the sizes of the network that it starts from, or that the folder `run` has begun with.

    What no weights know stays: drop path, and what is recomputed in backward.

    Args:
        settings: NAME=VALUE; those that say of a file what no shape in it tells are taken from among them.

    Raises:
        UnveilError: nothing to read, a layout that is not known, or sizes that nothing tells.
    """
    started = run / "config.json"
    model, normalization = _of_run(started) if started.is_file() else _of_weights(config, settings)
    ours = config.model
    vision = replace(
        model.vision,
        drop_path=ours.vision.drop_path,
        activation_checkpointing=ours.vision.activation_checkpointing,
    )
    text = replace(model.text, activation_checkpointing=ours.text.activation_checkpointing)
    return replace(
        config,
        model=replace(model, vision=vision, text=text),
        data=replace(config.data, normalization=normalization or config.data.normalization),
    )


def _of_run(file: Path) -> tuple[ClipModelConfig, Normalization]:
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        if not is_clip(said["model"]):
            raise UnveilError(
                f"{file.parent} holds a run of another kind; give --out another folder to train a CLIP in"
            )
        return from_json(ClipModelConfig, said["model"]), said["data"]["normalization"]
    except (ValueError, KeyError, TypeError) as error:
        raise UnveilError(f"{file} is not the configuration of a run of unveil ({error}); restore it") from None


def _of_weights(config: ContrastiveConfig, settings: Sequence[str]) -> tuple[ClipModelConfig, Normalization | None]:
    model, normalization = config.model, None
    if config.init_from is not None:
        told = [setting for setting in settings if setting.partition("=")[0] in UNTOLD]
        found = read_clip(Path(config.init_from).expanduser(), settings=told)
        model, normalization = found.config, known_about(found.file).get("normalization")
    if config.vision_init is not None:
        told = [setting.replace("model.vision.", "model.", 1) for setting in settings]
        with _calling_it_vision():
            vision, normalization = network_in(Path(config.vision_init).expanduser(), told)
        model = replace(model, vision=require_vit(vision, "a CLIP"))
    if config.text_init is not None:
        model = replace(model, text=_text_in(Path(config.text_init).expanduser(), settings))
    return model, normalization


@contextmanager
def _calling_it_vision() -> Iterator[None]:
    """What is said of an image tower that stands alone calls its settings as those of any network."""
    try:
        yield
    except UnveilError as error:
        raise UnveilError(str(error).replace("--set model.", "--set model.vision.")) from error


def _text_in(path: Path, settings: Sequence[str]) -> TextConfig:
    file, state = read_backbone(path)
    said = clip_config_in(file)
    if said is not None:
        return said.text
    heads = dict(setting.split("=", 1) for setting in settings if "=" in setting).get("model.text.heads", "")
    return text_config_of(recognize(state, source=str(file)), source=str(file), heads=int(heads) if heads else None)


def _load_whole(clip: Clip, path: Path) -> LoadReport:
    """Fill everything; positions and patches are resized to the model's."""
    found = read_clip(path)
    rest = {name: value for name, value in found.state.items() if not name.startswith(("visual.", "text."))}
    own = clip.state_dict()
    for name, value in rest.items():
        if name not in own or own[name].shape != value.shape:
            there, here = (tuple(state[name].shape) if name in state else "not there" for state in (rest, own))
            raise UnveilError(
                f"{found.file}: {name} is {there} in the file and {here} in the model; leave --recipe out to take the "
                "sizes from the weights"
            )
    visual, text = load_backbone(clip.visual, path), load_text(clip.text, path)
    clip.load_state_dict(rest, strict=False)
    return replace(found.report, resized=visual.resized, notes=[*visual.notes, *text.notes])
