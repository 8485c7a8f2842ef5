"""COCO's JSON files for fashion scenes: boxes and masks of the garments, and captions."""

from typing import Any

import numpy as np
from jaxtyping import Bool

from unveil.data.samples.garments import CLASS_NAMES
from unveil.data.samples.scenes import Scene


def run_lengths(mask: Bool[np.ndarray, "h w"]) -> list[int]:
    """COCO's uncompressed run lengths: pixels column by column, zeros first, so that a leading 0 may say "no zeros"."""
    pixels = mask.ravel(order="F")
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    lengths = np.diff([0, *changes.tolist(), pixels.size]).tolist()
    return [0, *lengths] if pixels[0] else lengths


class CocoFiles:
    """Collects one split; `instances` and `captions` are the contents of instances_*.json and captions_*.json."""

    def __init__(self, description: str) -> None:
        common: dict[str, Any] = {"info": {"description": description}, "licenses": []}
        images: list[dict[str, Any]] = []
        categories = [
            # COCO numbers its categories from 1.
            {"id": label + 1, "name": name, "supercategory": "garment"}
            for label, name in enumerate(CLASS_NAMES)
        ]
        self.instances = {**common, "images": images, "annotations": [], "categories": categories}
        self.captions = {**common, "images": images, "annotations": []}

    def add(self, image: int, file_name: str, scene: Scene) -> None:
        """`image` is the id; `file_name` is relative to the split's folder of images."""
        height, width = scene.image.shape[:2]
        self.instances["images"].append({"id": image, "file_name": file_name, "width": width, "height": height})
        annotations = self.instances["annotations"]
        for garment in scene.garments:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": garment.label + 1,
                    "bbox": list(garment.box),
                    "area": garment.area,
                    "iscrowd": 0,
                    "segmentation": {"size": [height, width], "counts": run_lengths(garment.mask)},
                }
            )
        captions = self.captions["annotations"]
        captions.append({"id": len(captions) + 1, "image_id": image, "caption": scene.caption})
