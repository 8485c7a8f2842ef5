"""Trained networks for other programs: timm, safetensors, ONNX, torch.export; each checked against the original."""

import json
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from unveil.build.deployable import Deployable
from unveil.build.export_place import FILES, Exported, move_all, places, require_free
from unveil.config import RevColV2Config, UnveilError, ViTConfig
from unveil.config.revcolv2 import in_words
from unveil.config.serialize import to_json
from unveil.data.normalization import MEAN_AND_STD
from unveil.weights.convert import convert
from unveil.weights.timm_network import TimmNetwork, timm_network
from unveil.weights.write import notes, workplace, write_weights

Kind = Literal["timm", "safetensors", "onnx", "torch-export"]
"""Of a single network; a whole CLIP: `unveil.build.clip_export`."""


def export(
    network: Deployable,
    *,
    to: Kind,
    out: Path,
    source: Path,
    weights: str = "",
    classes: tuple[str, ...] = (),
    crop_share: float = 1.0,
    batch_size: int | None = 1,
    overwrite: bool = False,
) -> Exported:
    """Write `network` for another program, check that it gives the same answers there, and write its model card.

    Args:
        out: a folder, or (not for timm) a file; the card lies in the folder as README.md, or beside the file.
        source: the run folder or file that the network was loaded from, for the card.
        weights: which of the run's these are, in a sentence for the card.
        crop_share: of an image's short side that the network was evaluated on, which timm notes.
        batch_size: of ONNX and torch.export; None = any.

    Raises:
        UnveilError: `out` cannot be written, a package is missing, or the answers differ by more than `CLOSE`.
    """
    from unveil.weights.model_card import model_card

    folder, file, card = places(out, to)
    require_free(folder, file, card, overwrite=overwrite)
    with workplace(folder) as work:
        match to:
            case "timm":
                difference, loading = _timm(network, work, folder, classes, crop_share)
            case "safetensors":
                difference, loading = _safetensors(network, work / file, folder / file, source, classes, crop_share)
            case "onnx":
                difference, loading = _onnx(network, work / file, folder / file, classes, crop_share, batch_size)
            case "torch-export":
                difference, loading = _torch_export(network, work / file, folder / file, batch_size)
        checked = (
            f"On export the answers to random images differed from the original's by at most {difference:.1e} "
            "(float32, CPU)."
        )
        text = model_card(
            source,
            title=f"{source.name} for {to}",
            what=f"{_what(network)} {weights}".strip(),
            loading=loading,
            checked=checked,
        )
        (work / card).write_text(text, encoding="utf-8")
        move_all(work, folder, last=card)
    return Exported(file=folder / file, card=folder / card, difference=difference, loading=loading)


def _timm(
    network: Deployable, work: Path, folder: Path, classes: tuple[str, ...], crop_share: float
) -> tuple[float, str]:
    """A folder that `timm.create_model("local-dir:...")` opens."""
    import timm
    from timm.models import save_for_hf

    theirs, state = as_timm(network)
    model: Any = timm.create_model(theirs.name, **theirs.arguments)
    model.load_state_dict(state, strict=True)
    mean, std = MEAN_AND_STD[network.normalization]
    cfg = {"mean": mean, "std": std, "input_size": (3, network.image_size, network.image_size), "crop_pct": crop_share}
    cfg |= {"interpolation": "bicubic", "num_classes": model.num_classes, "tag": "unveil"}
    # Else the licence of the architecture's own weights would be claimed for these.
    cfg["license"] = "other: see README.md"
    labels = {"label_names": list(classes)} if classes else {}
    save_for_hf(
        model,
        str(work),
        model_config={"pretrained_cfg": cfg | labels, "model_args": theirs.arguments},
        safe_serialization=True,
    )
    opened: Any = timm.create_model(f"local-dir:{work}", pretrained=True).eval()
    images = network.random_images(2)
    pixels = torch.addcmul(network.shift, images.float(), network.scale)
    with torch.no_grad():
        answers = (opened(pixels),) if network.classifier is not None else _timm_features(opened, pixels)
    difference = network.difference(images, answers)
    loading = f"""```python
import timm

model = timm.create_model("local-dir:{folder}", pretrained=True).eval()
```

which a command line shows too:

```bash
python -c 'import timm; print(timm.create_model("local-dir:{folder}", pretrained=True))'
```

or, without this folder's config.json:

```python
import timm
from safetensors.torch import load_file

model = {theirs.call()}
model.load_state_dict(load_file("{folder / FILES["timm"]}"), strict=True)
```

Input: RGB, {network.image_size} x {network.image_size} pixels, divided by 255, less {mean}, divided by {std}."""
    return difference, loading


def as_timm(network: Deployable) -> tuple[TimmNetwork, dict[str, Tensor]]:
    """The timm network of the same architecture, and its state dict.

    Raises:
        UnveilError: timm has none.
    """
    config, native = network.backbone.config, network.native()
    if isinstance(config, RevColV2Config):
        raise UnveilError("timm has no RevColV2; give --to safetensors, onnx or torch-export")
    separate = config.qkv_bias == "query_and_value" and config.activation == "gelu" and not config.norm_before_blocks
    converted = convert(native, config, source="the network", to="timm", joint_biases=not separate)
    assert isinstance(converted.config, ViTConfig)
    classes = converted.state["head.weight"].shape[0] if network.classifier is not None else 0
    pooled_norm = "fc_norm.weight" in converted.state
    theirs = timm_network(
        converted.config,
        classes=classes,
        pooling="cls" if network.classifier is None else network.classifier.pooling,
        pooled_norm=pooled_norm,
        separate_biases=separate,
    )
    return theirs, converted.state


def _timm_features(model: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    tokens = model.forward_features(pixels)
    return tokens[:, 0], tokens[:, 1:]


def _safetensors(
    network: Deployable, work: Path, file: Path, source: Path, classes: tuple[str, ...], crop_share: float
) -> tuple[float, str]:
    """Our own names, with everything that `unveil.load` needs in the file's header."""
    from safetensors.torch import load_file

    known = {
        "model": to_json(network.backbone.config),
        "classes": list(classes) or None,
        "normalization": network.normalization,
        "pooling": None if network.classifier is None else network.classifier.pooling,
        "test_crop": crop_share,
    }
    state = network.native()
    write_weights(work, state, notes(known, layout="native", source=source))
    written = load_file(work)
    equal = written.keys() == state.keys() and all(torch.equal(written[name], state[name]) for name in state)
    if not equal:
        raise UnveilError(f"{file}: the disk gave back other numbers than were written; try another one")
    loading = f"""```python
import unveil

model = unveil.load("{file}")
```"""
    return 0.0, loading


def _onnx(
    network: Deployable,
    work: Path,
    file: Path,
    classes: tuple[str, ...],
    crop_share: float,
    batch_size: int | None,
) -> tuple[float, str]:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  torch.onnx needs it
    except ImportError as error:
        raise UnveilError(f'exporting to ONNX needs the package {error.name}: pip install "unveil[onnx]"') from error
    # A batch of one would be taken for a constant.
    example = network.random_images(batch_size or 2)
    # With gradients a RevColV2 would compute columns anew for a backward pass that never comes.
    with torch.no_grad():
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            input_names=["images"],
            output_names=list(network.outputs),
            dynamic_shapes=None if batch_size else {"images": {0: torch.export.Dim("batch", min=1)}},
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props["classes"] = json.dumps(list(classes))
    program.model.metadata_props["test_crop"] = str(crop_share)
    program.save(work)
    session = onnxruntime.InferenceSession(work, providers=["CPUExecutionProvider"])
    difference = 0.0
    for count in (batch_size,) if batch_size else (1, 3):
        images = network.random_images(count)
        answers = tuple(map(torch.from_numpy, session.run(None, {"images": images.numpy()})))
        difference = max(difference, network.difference(images, answers))
    size = network.image_size
    loading = f"""```python
import numpy, onnxruntime

session = onnxruntime.InferenceSession("{file}")
images = numpy.zeros(({batch_size or "any number of images"}, 3, {size}, {size}), dtype=numpy.uint8)  # RGB
{", ".join(network.outputs)} = session.run(None, {{"images": images}}){"[0]" if len(network.outputs) == 1 else ""}
```

The images are bytes, 0 to 255: the normalisation is inside. In the file's metadata are the names of the classes, and as
"test_crop" the share of the short side whose middle square the network sees."""
    return difference, loading.replace("(any number of images,", "(5,")


def _torch_export(network: Deployable, work: Path, file: Path, batch_size: int | None) -> tuple[float, str]:
    shapes = None if batch_size else {"images": {0: torch.export.Dim("batch", min=1)}}
    with torch.no_grad():
        program = torch.export.export(network, (network.random_images(batch_size or 2),), dynamic_shapes=shapes)
    torch.export.save(program, work)
    opened = torch.export.load(work).module()
    difference = 0.0
    for count in (batch_size,) if batch_size else (1, 3):
        images = network.random_images(count)
        with torch.no_grad():
            difference = max(difference, network.difference(images, opened(images)))
    size = network.image_size
    loading = f"""```python
import torch

model = torch.export.load("{file}").module()
({", ".join(network.outputs)},) = model(torch.zeros({batch_size or 5}, 3, {size}, {size}, dtype=torch.uint8))  # RGB
```

The images are bytes, 0 to 255: the normalisation is inside."""
    return difference, loading


def _what(network: Deployable) -> str:
    config = network.backbone.config
    kind = "classifier" if network.classifier is not None else "feature extractor"
    count = sum(parameter.numel() for parameter in (network.classifier or network.backbone).parameters())
    network_is = f"{in_words(config)}, {count / 1e6:,.1f} M parameters, {config.image_size} px"
    if isinstance(config, ViTConfig):
        network_is += f" in patches of {config.patch_size} px"
    return f"A {kind}: {network_is}. Trained with unveil."
