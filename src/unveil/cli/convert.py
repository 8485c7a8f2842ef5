"""`unveil convert`: weights from one layout to another."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from unveil.config import RevColV2Config, UnveilError

Number = Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")]
Format = Literal["native", "eva", "timm", "openai", "open_clip"]


@dataclass(frozen=True)
class Convert:
    """Read weights of EVA, EVA-CLIP, timm, MAE, OpenAI's CLIP, open_clip or a run, and write them in another layout.

    Example: unveil convert eva_psz14.pt --to eva_336.safetensors --image-size 336
    """

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="IN", help_behavior_hint="")]
    """A file of weights (.safetensors, .pt, .pth, .bin) or a run folder."""
    to: Annotated[Path, tyro.conf.arg(metavar="OUT", help_behavior_hint="")]
    """New file: .safetensors (knows its sizes and its source) or .pt (a plain state dict)."""
    format: Annotated[Format, tyro.conf.arg(help_behavior_hint="")] = "native"
    """Whose names the tensors get."""
    image_size: Number = None
    """Resize the positions for images of this side, pixels."""
    patch_size: Number = None
    """Resize the patch embedding to this side, pixels."""
    set: Annotated[
        tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE", help_behavior_hint=""), tyro.conf.UseAppendAction
    ] = ()
    """What no shape tells: model.heads, activation or norm_epsilon; model.text.heads or activation of a CLIP."""
    half: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Write float16."""
    overwrite: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Replace OUT where it is there already."""

    def run(self) -> int:
        from unveil.cli.terminal import log_on_terminal
        from unveil.config.revcolv2 import in_words
        from unveil.config.serialize import to_json
        from unveil.weights.clip_text import text_of
        from unveil.weights.convert import convert, convert_columns
        from unveil.weights.infer import known_about
        from unveil.weights.load import read_network
        from unveil.weights.write import check_target, notes, write_weights

        for name in ("image_size", "patch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UnveilError(f"--{name.replace('_', '-')} is {value}; give at least 1")
        check_target(self.to, overwrite=self.overwrite)
        with log_on_terminal(0):
            of_text = [setting for setting in self.set if setting.startswith("model.text.")]
            network = read_network(self.source, settings=[setting for setting in self.set if setting not in of_text])
            if isinstance(network.config, RevColV2Config):
                converted = convert_columns(
                    network.state,
                    network.config,
                    source=str(network.file),
                    to=self.format,
                    image_size=self.image_size,
                    patch_size=self.patch_size,
                    half=self.half,
                )
            else:
                text = text_of(network.file, network.state, settings=of_text)
                converted = convert(
                    network.state,
                    network.config,
                    source=str(network.file),
                    to=self.format,
                    image_size=self.image_size,
                    patch_size=self.patch_size,
                    half=self.half,
                    text=text,
                )
        known = known_about(network.file) | {"model": to_json(converted.model)}
        write_weights(self.to, converted.state, notes(known, layout=self.format, source=network.file))
        config, (rows, columns) = converted.config, converted.config.grid
        heads = "" if isinstance(config, RevColV2Config) else f", {config.heads} heads"
        pieces = "units" if isinstance(config, RevColV2Config) else "patches"
        print(converted.report)
        print(
            f"wrote {self.to}: {self.format} layout, {sum(value.numel() for value in converted.state.values()):,} "
            f"numbers, {in_words(config)}{heads}, {config.image_size} px in {rows} x {columns} {pieces} of "
            f"{config.mask_unit} px"
        )
        return 0
