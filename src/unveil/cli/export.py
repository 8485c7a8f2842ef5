"""`unveil export`: a trained network for other programs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from unveil.config import UnveilError


@dataclass(frozen=True)
class Export:
    """Write a trained network for another library, checked against the original, with its model card.

    Example: unveil export runs/mine --to onnx --out exported/
    """

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help_behavior_hint="")]
    """A run folder or a file of weights. A classifier gives logits, anything else cls and patch features; a whole CLIP
    stays one for open_clip and safetensors."""
    to: Annotated[
        Literal["timm", "open_clip", "safetensors", "onnx", "torch-export"], tyro.conf.arg(help_behavior_hint="")
    ]
    """What for. ONNX and torch.export take RGB bytes: the normalisation is inside."""
    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER_OR_FILE", help_behavior_hint="")]
    """Where to: model and README.md in a folder, or (not timm, open_clip) a file with its card beside it."""
    weights: Annotated[Literal["ema", "raw"], tyro.conf.arg(help_behavior_hint="")] = "ema"
    """The running average of the weights where the run keeps one, or those of the last step."""
    batch_size: Annotated[int, tyro.conf.arg(metavar="N", help_behavior_hint="")] = 1
    """Images that ONNX and torch.export take at a time."""
    dynamic_batch: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Let them take any number."""
    overwrite: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Replace what an earlier export wrote there."""

    def run(self) -> int:
        import unveil
        from unveil.build.clip_export import export_clip
        from unveil.build.deployable import Deployable
        from unveil.build.export import export
        from unveil.cli.terminal import log_on_terminal
        from unveil.weights.clip import holds_clip, read_clip
        from unveil.weights.load import FILES, candidates

        if self.batch_size < 1:
            raise UnveilError(f"--batch-size is {self.batch_size}; give at least 1, or --dynamic-batch")
        with log_on_terminal(0):
            weights = ""
            if self.source.is_dir() and (files := candidates(self.source, self.weights)):
                averaged = files[0].name == FILES["ema"][0]
                weights = (
                    f"The weights are {'the running average over training' if averaged else 'those of the last step'}."
                )
            if self.to == "open_clip" or (self.to == "safetensors" and holds_clip(self.source, weights=self.weights)):
                exported = export_clip(
                    read_clip(self.source, weights=self.weights),
                    to=self.to,
                    out=self.out,
                    source=self.source,
                    weights=weights,
                    overwrite=self.overwrite,
                )
            else:
                model = unveil.load(self.source, weights=self.weights, device="cpu")
                exported = export(
                    Deployable(model.backbone, model.classifier, model.normalization),
                    to=self.to,
                    out=self.out,
                    source=self.source,
                    weights=weights,
                    classes=model.classes,
                    crop_share=model.crop.share,
                    batch_size=None if self.dynamic_batch else self.batch_size,
                    overwrite=self.overwrite,
                )
        print(
            f"wrote {exported.file}; its answers to random images differ from the original's by at most "
            f"{exported.difference:.1e}\n\n{exported.loading}\n\nmodel card: {exported.card}"
        )
        return 0
