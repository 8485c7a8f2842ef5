"""How many images the data sets of the paper's recipes hold, for those whose length is given in epochs."""

IMAGENET_1K = 1_281_167
IMAGENET_21K = 14_197_122
"""The release of winter 2021, 21,841 classes."""
MERGED_30M = 29_663_232
"""Table 3b's 29.6 million: 7,242 steps of 4,096 an epoch by the learning rates of the released log."""

IMAGES = {
    "eva_giant": MERGED_30M,
    "eva_giant_in21k": IMAGENET_21K,
    "eva_base_pilot": IMAGENET_1K,
    "eva_base_pilot_300": IMAGENET_1K,
    "eva_base_pilot_1600": IMAGENET_1K,
    "distillation_base_300": IMAGENET_1K,
    "distillation_base_800": IMAGENET_1K,
    "distillation_base_1600": IMAGENET_1K,
    "vqkd_base": IMAGENET_1K,
    "tokens_base_300": IMAGENET_1K,
    "tokens_base_800": IMAGENET_1K,
    "tokens_base_1600": IMAGENET_1K,
    "revcolv2_base_mim": IMAGENET_1K,
    "revcolv2_large_mim": IMAGENET_1K,
    "mae_base": IMAGENET_1K,
    "mae_large": IMAGENET_1K,
    "revcolv2_base_in22k": IMAGENET_21K,
    "revcolv2_large_in22k": IMAGENET_21K,
}
"""By recipe; those that end in _in1k or _in1k_SIZE, and the probes of EVA-CLIP, are ImageNet-1K's."""

CLASSES = {"eva_giant_in21k": 21_841, "revcolv2_base_in22k": 21_841, "revcolv2_large_in22k": 21_841}


def images_of(recipe: str) -> int | None:
    """None: the recipe is for whatever a person has."""
    if "_in1k" in recipe or recipe.startswith("eva_clip_probe"):
        return IMAGENET_1K
    return IMAGES.get(recipe)


def classes_of(recipe: str) -> int:
    """1,000 where a recipe names no data set of its own."""
    return CLASSES.get(recipe, 1000)
