"""A model card from a run's own files: data, recipe, numbers, licence notes, how to load what was exported."""

import json
from pathlib import Path
from typing import Any

from unveil.config import RevColV2Config, UnveilError
from unveil.config.revcolv2 import in_words
from unveil.config.serialize import from_json

LICENCES = {
    "embedded": "EfficientNet-Lite0, ImageNet weights: Apache-2.0",
    "/openai": "OpenAI's CLIP: MIT",
    "eva_": "EVA (BAAI): MIT",
}
"""Parts of names of teachers and files -> what is known of their licence. The person who publishes checks it."""


_STARTS = (("init_from", ""), ("vision_init", "image tower"), ("text_init", "text tower"))
"""Settings that name weights to start from, and what starts there."""

WITHOUT_WEIGHTS = ("PixelTarget", "HogTarget", "EmaTarget")
"""Targets that no weights of others stand behind."""

SHOWN = 20
"""Classes and parts of the data that the card lists."""


def model_card(source: Path, *, title: str, what: str, loading: str, checked: str) -> str:
    """Markdown for a README.md.

    Args:
        source: folder of a run, or a file in one; of any other file nothing but its name is known.
        title: heading.
        what: a sentence on the network.
        loading: Markdown that shows how to load it.
        checked: a sentence on how the export was compared with the run.

    Raises:
        UnveilError: the run's files are damaged.
    """
    run = _run_of(source)
    config = _read(run / "config.json") if (run / "config.json").is_file() else None
    parts = [f"# {title}", what, "## How to load it", loading, checked]
    if config is None:
        parts += [
            "## Where it comes from",
            f"The file `{source.name}`. Nothing else is known: its licence is its authors'.",
        ]
        return "\n\n".join(parts) + "\n"
    parts += ["## Data", _data(run, config), "## Recipe", _recipe(run, config), "## Numbers", _numbers(run)]
    parts += ["## Licence", _licence(config)]
    return "\n\n".join(parts) + "\n"


def _data(run: Path, config: dict[str, Any]) -> str:
    lines = []
    if (run / "data.json").is_file():
        parts = _read(run / "data.json")["parts"]
        total = sum(part["count"] for part in parts.values())
        lines = [f"{total:,} samples.", "", "| part | samples | SHA-256 of the list |", "|---|---|---|"]
        lines += [
            f"| `{Path(name).name or name}` | {part['count']:,} | `{part['sha256']}` |"
            for name, part in list(parts.items())[:SHOWN]
        ]
        if len(parts) > SHOWN:
            lines += ["", f"And {len(parts) - SHOWN:,} parts more, which the run's `data.json` lists."]
    classes = config.get("classes") or []
    if classes:
        shown = ", ".join(classes[:SHOWN]) + (f" and {len(classes) - SHOWN:,} more" if len(classes) > SHOWN else "")
        lines += ["", f"{len(classes):,} classes: {shown}."]
    return "\n".join(lines) or "Nothing is known about the data."


def _recipe(run: Path, config: dict[str, Any]) -> str:
    model, optimization = config["model"], config["optimization"]
    rows = {
        "recipe": f"`{config['recipe']}` ({config['kind']})",
        "network": _network(model),
        "input": f"RGB, {config['data']['normalization']} mean and standard deviation",
        "steps": f"{optimization['steps']:,} of {optimization['global_batch_size']:,} images",
        "optimizer": _settings(optimization["optimizer"]),
        "precision": config["engine"]["precision"],
        "seed": config["engine"]["seed"],
    }
    if "target" in config:
        rows |= _pretext(config)
    if "augmentation" in config:
        rows["augmentation"] = _settings(config["augmentation"])
    starts = [
        f"`{config[name]}` ({what})" if what else f"`{config[name]}`" for name, what in _STARTS if config.get(name)
    ]
    rows["started from"] = ", ".join(starts) or "random weights"
    if (run / "environment.json").is_file():
        environment = _read(run / "environment.json")
        known = [
            f"{name} {environment[name]}" for name in ("unveil", "torch", "timm", "device") if environment.get(name)
        ]
        rows["environment"] = ", ".join([*known, f"{environment.get('processes', 1)} processes"])
    table = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
    return "\n".join(table) + "\n\nEvery setting is in the run's `config.json`."


def _pretext(config: dict[str, Any]) -> dict[str, str]:
    """What was predicted, and what was hidden, where anything was."""
    objective = config.get("objective", {"kind": "MaskedRegression"})
    rows = {"objective": _settings(objective)}
    if "tokenizer" not in objective:
        rows["teacher"] = _settings(config["target"])
    if objective["kind"].startswith("Masked"):
        rows["masking"] = _settings(config["masking"])
    return rows


def _network(model: dict[str, Any]) -> str:
    if "vision" in model:
        text = model["text"]
        return (
            f"CLIP: {_network(model['vision'])}; text tower {text['width']} wide, {text['depth']} deep, "
            f"{text['heads']} heads, {text['context_length']} tokens; {model['embedding_width']} shared"
        )
    if model["kind"] == RevColV2Config.__name__:
        columns = from_json(RevColV2Config, model)
        return f"{in_words(columns)}, {columns.image_size} px, units of {columns.mask_unit} px are hidden as a whole"
    return (
        f"ViT {model['width']} wide, {model['depth']} deep, {model['heads']} heads, "
        f"{model['image_size']} px, patches of {model['patch_size']} px"
    )


def _numbers(run: Path) -> str:
    """The last value of every measure in metrics.jsonl, with its step."""
    if not (run / "metrics.jsonl").is_file():
        return "The run wrote none."
    last: dict[str, tuple[float, int]] = {}
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            # A run that was killed while it wrote leaves half a line at the end.
            continue
        last |= {name: (value, values["step"]) for name, value in values.items() if isinstance(value, int | float)}
    shown = {
        name: found for name, found in last.items() if name not in ("step", "lr", "images_per_second", "grad_norm")
    }
    if not shown:
        return "The run wrote none."
    table = ["| measure | value | at step |", "|---|---|---|"]
    return "\n".join(table + [f"| {name} | {value:.4g} | {step:,} |" for name, (value, step) in shown.items()])


def _licence(config: dict[str, Any]) -> str:
    """Whose weights and features these weights were made from, through all the runs before this one."""
    origins = [f"- {origin}" for origin in _origins(config)]
    if not origins:
        return (
            "The weights were trained from random numbers on the data above, without another network; the terms of "
            "that data apply."
        )
    return "\n".join(
        [
            "The weights are derived from the following; their terms apply, and those of the data above. Check them "
            "before you publish:",
            "",
            *dict.fromkeys(origins),
        ]
    )


def _origins(config: dict[str, Any]) -> list[str]:
    origins = []
    target = config.get("target")
    if (tokenizer := config.get("objective", {}).get("tokenizer")) is not None:
        origins.append(f"trained to predict the codes of the tokeniser `{tokenizer}`")
        before = _run_of(Path(tokenizer)) / "config.json"
        if before.is_file():
            origins += [f"{origin} (by way of `{tokenizer}`)" for origin in _origins(_read(before))]
    elif target is not None and target["kind"] not in WITHOUT_WEIGHTS:
        name = target.get("file") or target.get("name") or "embedded"
        origins.append(f"trained to predict the features of the teacher `{name}`{_known_licence(name)}")
    for start in (config[name] for name, _ in _STARTS if config.get(name)):
        before = Path(start) / "config.json"
        origins.append(f"started from `{start}`{_known_licence(Path(start).name)}")
        if before.is_file():
            origins += [f"{origin} (by way of `{start}`)" for origin in _origins(_read(before))]
    return origins


def _run_of(source: Path) -> Path:
    """The folder of the run that `source` is, or lies in; itself where there is none."""
    return next((folder for folder in (source, *source.parents[:3]) if (folder / "checkpoints").is_dir()), source)


def _known_licence(name: str) -> str:
    return next((f" ({licence})" for part, licence in LICENCES.items() if part in name), "")


def _settings(value: dict[str, Any]) -> str:
    """AdamWConfig(learning_rate=0.001, ...)."""
    given = {name: item for name, item in value.items() if name != "kind" and item is not None}
    inner = ", ".join(
        f"{name}={_settings(item) if isinstance(item, dict) else repr(item)}" for name, item in given.items()
    )
    return f"{value['kind'].removesuffix('Config')}({inner})".replace("|", "\\|")


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnveilError(f"{path} cannot be read ({error}); the model card needs it, restore it") from error
