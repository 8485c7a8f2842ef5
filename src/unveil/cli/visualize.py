"""`unveil visualize`: pictures of what a network makes of images."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import tyro

from unveil.cli.model_options import Files, ModelOptions, Name, Number, check_at_least_one, input_size
from unveil.config import PixelTarget, RevColV2Config, UnveilError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from unveil.api import Model
    from unveil.config import PretrainConfig
    from unveil.data.sources.base import Sample, Source

What = Literal["attention", "pca", "similarity", "reconstruction", "masks"]

SHOWN = 448
"""Side of an image in the pictures, pixels: maps are coarser."""
DRAWS = 7
"""Masks of one image."""
MOST = 64
"""Images in one call: each makes a picture for a person to look at."""


@dataclass(frozen=True)
class Visualize(ModelOptions):
    """Draw what a network attends to, which patches it holds for alike, what it predicts, or what is hidden from it.

    Example: unveil visualize runs/mine photos/cat.jpg --what pca --out pictures
    """

    model: Name
    """A run, a file of weights, timm/NAME, or open_clip's MODEL/PRETRAINED."""
    files: Files
    """Images, folders, .tar shards, or patterns of them; the first 64 are taken."""
    what: Annotated[What | None, tyro.conf.arg(metavar=f"{{{','.join(get_args(What))}}}", help_behavior_hint="")] = None
    """Attention of the cls token; main directions of patch features; prediction and target of a pre-training run, or
    a patch and all others; hidden pixels as the run predicts them; its masks. Left out: attention, of RevColV2 pca."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = Path("pictures")
    """Folder for the pictures."""
    patch: Annotated[str | None, tyro.conf.arg(metavar="ROW,COLUMN", help_behavior_hint="")] = None
    """With similarity: compare this patch with all others, also of a pre-training run. Else: the middle one."""
    block: Number = None
    """With attention: block by number, from 0. Left out: the last."""
    image_size: Number = None
    """Side of the network's input, pixels; larger gives finer maps. Left out: the model's own."""

    def run(self) -> int:
        from unveil.cli.terminal import counting, log_on_terminal
        from unveil.data.sources.open import open_images
        from unveil.visualize.figures import save_picture

        if self.image_size is not None:
            check_at_least_one(image_size=self.image_size)
        with log_on_terminal(0):
            with counting("images") as count:
                source = open_images(self.files, on_progress=count)
            model = self.load(self.model)
            what = self.what or ("pca" if isinstance(model.backbone.config, RevColV2Config) else "attention")
            pictures = self._pictures(what, model, source)
            taken: set[str] = set()
            for name, picture in pictures:
                if not taken:
                    self._make_folder()
                file = self.out / f"{_free(f'{what}_{name}', taken)}.png"
                save_picture(picture, file)
                print(f"wrote {file}", flush=True)
        return 0

    def _make_folder(self) -> None:
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UnveilError(f"--out {self.out} cannot be made ({error.strerror}); give another folder") from error

    def _pictures(self, what: What, model: "Model", source: "Source") -> "Iterator[tuple[str, Image.Image]]":
        """A name and a picture, one after the other.

        Raises:
            UnveilError: an option that does not fit the model, or nothing that can be read.
        """
        size = input_size(model, self.image_size)
        grid = (size // model.stride, size // model.stride)
        samples = _readable(source)
        match what:
            case "attention":
                return self._attention(model, samples, size, grid)
            case "pca" if isinstance(model.backbone.config, RevColV2Config):
                return self._levels(model, samples, size)
            case "pca":
                return self._components(model, samples, size, grid)
            case "masks":
                return self._masks(self._require_pretraining(what, model), samples)
            case "reconstruction":
                return self._reconstructions(model, self._require_pretraining(what, model), source, samples)
            case "similarity":
                if self.patch is None and _pretraining(model) is not None:
                    return self._predictions(model, self._require_pretraining(what, model), source, samples)
                return self._patch_similarity(model, samples, size, grid)

    def _attention(
        self, model: "Model", samples: "list[Sample]", size: int, grid: tuple[int, int]
    ) -> "Iterator[tuple[str, Image.Image]]":
        from unveil.visualize.maps import attention_picture

        if isinstance(model.backbone.config, RevColV2Config):
            raise UnveilError(f"{self.model} is a RevColV2, which has no cls token that attends; give --what pca")
        depth = model.backbone.config.depth
        block = depth - 1 if self.block is None else self.block
        if not 0 <= block < depth:
            raise UnveilError(f"--block {block}: the model has blocks 0 to {depth - 1}")
        for sample in samples:
            attention = model.attention(_shown(model, sample, size)[None], block)[0, :, 0, 1:]
            which = f"block {block}" + (", the last" if block == depth - 1 else "")
            title = f"{_name(sample)}: attention of the cls token in {which}"
            yield _stem(sample), attention_picture(_shown(model, sample, SHOWN), attention, grid, title)

    def _components(
        self, model: "Model", samples: "list[Sample]", size: int, grid: tuple[int, int]
    ) -> "Iterator[tuple[str, Image.Image]]":
        import torch

        from unveil.visualize.components import components_picture

        features = model.features(torch.stack([_shown(model, sample, size) for sample in samples])).patches
        images = [_shown(model, sample, SHOWN) for sample in samples]
        title = "patch features: their three main directions over all images as red, green and blue"
        names = [_name(sample) for sample in samples]
        yield _of_all(samples), components_picture(images, features, grid, names, title)

    def _levels(self, model: "Model", samples: "list[Sample]", size: int) -> "Iterator[tuple[str, Image.Image]]":
        import torch

        from unveil.visualize.components import levels_picture

        maps = model.feature_maps(torch.stack([_shown(model, sample, size) for sample in samples]))
        images = [_shown(model, sample, SHOWN) for sample in samples]
        title = "the last column's levels: their main directions over all images as red, green and blue"
        yield _of_all(samples), levels_picture(images, maps, [_name(sample) for sample in samples], title)

    def _patch_similarity(
        self, model: "Model", samples: "list[Sample]", size: int, grid: tuple[int, int]
    ) -> "Iterator[tuple[str, Image.Image]]":
        from unveil.visualize.maps import patch_similarity_picture

        patch = _parse_patch(self.patch, grid)
        for sample in samples:
            features = model.features(_shown(model, sample, size)[None]).patches[0]
            picture = patch_similarity_picture(_shown(model, sample, SHOWN), features, grid, patch, _name(sample))
            yield _stem(sample), picture

    def _masks(self, config: "PretrainConfig", samples: "list[Sample]") -> "Iterator[tuple[str, Image.Image]]":
        import torch

        from unveil.build.image_batches import middle
        from unveil.config.data import CenterCrop
        from unveil.data.order import sample_rng
        from unveil.pretext.masking import masking_function
        from unveil.visualize.maps import masks_picture

        masking, grid = masking_function(config.masking), config.model.grid
        for number, sample in enumerate(samples):
            draws = range(number * DRAWS, (number + 1) * DRAWS)
            masks = torch.stack([masking(sample_rng(config.engine.seed, draw), grid) for draw in draws])
            title = f"{_name(sample)}: {type(config.masking).__name__}, ratio {config.masking.ratio:g}"
            yield _stem(sample), masks_picture(middle(sample.image, CenterCrop(), SHOWN), masks, grid, title)

    def _predictions(
        self, model: "Model", config: "PretrainConfig", source: "Source", samples: "list[Sample]"
    ) -> "Iterator[tuple[str, Image.Image]]":
        from unveil.build.insight import load_masked_modelling, prediction_similarity, size_for_teacher
        from unveil.data.order import sample_rng
        from unveil.pretext.masking import masking_function
        from unveil.visualize.maps import prediction_picture

        task = load_masked_modelling(
            Path(self.model).expanduser(), config, stand_in=source, weights=self.weights, device=model.device
        )
        masking, grid, side = masking_function(config.masking), config.model.grid, size_for_teacher(config, task)
        for number, sample in enumerate(samples):
            mask = masking(sample_rng(config.engine.seed, number), grid)
            seen, whole = (_shown(model, sample, size)[None] for size in (model.image_size, side))
            similarity = prediction_similarity(task, seen, whole, mask[None])[0]
            pixels = isinstance(config.target, PixelTarget)
            what = "pixels" if pixels else f"{task.target.name.partition('/')[0]}'s features"
            title = f"{_name(sample)}: predicting {what}"
            yield _stem(sample), prediction_picture(_shown(model, sample, SHOWN), similarity, mask, grid, title)

    def _reconstructions(
        self, model: "Model", config: "PretrainConfig", source: "Source", samples: "list[Sample]"
    ) -> "Iterator[tuple[str, Image.Image]]":
        from unveil.build.insight import load_masked_modelling, reconstruct
        from unveil.data.order import sample_rng
        from unveil.pretext.masking import masking_function
        from unveil.visualize.maps import reconstruction_picture

        task = load_masked_modelling(
            Path(self.model).expanduser(), config, stand_in=source, weights=self.weights, device=model.device
        )
        masking, grid = masking_function(config.masking), config.model.grid
        normalized = isinstance(config.target, PixelTarget) and config.target.normalize
        told = ", with the true mean and contrast of each" if normalized else ""
        for number, sample in enumerate(samples):
            image, mask = _shown(model, sample, model.image_size), masking(sample_rng(config.engine.seed, number), grid)
            found = reconstruct(task, image[None], mask[None])[0]
            title = f"{_name(sample)}: hidden squares as they are predicted{told}"
            yield _stem(sample), reconstruction_picture(image, found, mask, grid, title)

    def _require_pretraining(self, what: What, model: "Model") -> "PretrainConfig":
        config = _pretraining(model)
        if config is None:
            raise UnveilError(
                f"--what {what} needs the folder of a pre-training run, which says what is hidden; {self.model} is none"
            )
        if self.image_size is not None:
            raise UnveilError(f"--what {what} shows the run as it was; leave --image-size out")
        return config


def _pretraining(model: "Model") -> "PretrainConfig | None":
    from unveil.config import PretrainConfig
    from unveil.config.serialize import from_json

    run: dict[str, Any] = model.config or {}
    return from_json(PretrainConfig, run) if run.get("kind") == PretrainConfig.__name__ else None


def _readable(source: "Source") -> "list[Sample]":
    """The first samples that can be read; the others are named in the log.

    Raises:
        UnveilError: none can.
    """
    import logging

    from unveil.data.sources.base import UnreadableSample

    log = logging.getLogger(__name__)
    samples = []
    for place in range(min(MOST, len(source))):
        try:
            samples.append(source[place])
        except UnreadableSample as error:
            log.warning("cannot read %s", error)
    if not samples:
        raise UnveilError(f"none of {min(MOST, len(source))} images can be read; copy them again")
    if len(source) > MOST:
        log.warning("the first %d of %s images are drawn", MOST, f"{len(source):,}")
    return samples


def _shown(model: "Model", sample: "Sample", size: int) -> "Tensor":
    """The part of the image that the model sees, at `size` pixels."""
    from unveil.build.image_batches import middle

    return middle(sample.image, model.crop, size)


def _parse_patch(text: str | None, grid: tuple[int, int]) -> tuple[int, int]:
    """Row and column; the middle where nothing is said."""
    if text is None:
        return grid[0] // 2, grid[1] // 2
    found = re.fullmatch(r"\s*(\d+)\s*,\s*(\d+)\s*", text)
    if found is None or int(found[1]) >= grid[0] or int(found[2]) >= grid[1]:
        raise UnveilError(
            f"--patch {text}: give ROW,COLUMN, counted from 0, on the grid of {grid[0]} x {grid[1]} patches"
        )
    return int(found[1]), int(found[2])


def _of_all(samples: "list[Sample]") -> str:
    """For the file of a picture that shows them all."""
    return _stem(samples[0]) if len(samples) == 1 else f"of_{len(samples)}"


def _name(sample: "Sample") -> str:
    return Path(sample.name).name


def _stem(sample: "Sample") -> str:
    """For a file's name: of "shard.tar:member.jpg" the member's."""
    return re.sub(r"[^\w.-]+", "_", Path(sample.name.rsplit(":", 1)[-1]).stem) or "image"


def _free(name: str, taken: set[str]) -> str:
    """The name, with a number where it is taken."""
    free, number = name, 1
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    taken.add(free)
    return free
