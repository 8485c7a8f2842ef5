"""The optional last chapter: images and captions. A CLIP from the pre-trained network, and the same from scratch."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from unveil.build import find_machine, train_clip
from unveil.build.clip_models import load_clip
from unveil.config import ContrastiveConfig
from unveil.config.quickstart import CaptionsChapter
from unveil.config.resolve import resolve
from unveil.config.revcolv2 import require_vit
from unveil.data.samples.composition import describe
from unveil.data.samples.garments import COLOUR_NAMES
from unveil.data.sources.base import Source
from unveil.data.sources.class_captions import ClassCaptions
from unveil.engine import Parallel, Precision
from unveil.quickstart.story import BATCH, Search, StepReporter, Story, end_where_stopped, logged_losses
from unveil.tasks.contrastive.embedder import Embedder
from unveil.tasks.contrastive.held_out import pair_scores
from unveil.tasks.contrastive.prompts import BLANK, fill
from unveil.tasks.contrastive.retrieval import nearest
from unveil.tasks.contrastive.zero_shot import zero_shot_weights

SCENE_TEMPLATES = tuple(describe(colour, BLANK) for colour in COLOUR_NAMES)
"""Zero-shot sentences are those of the captions, in all colours: "a red {}" and so on."""
SCENE_QUERIES = ("a green sneaker", "a red dress", "a white t-shirt", "a yellow bag", "a blue ankle boot")
PHOTO_TEMPLATES = ("a photo of a {}", "a picture of a {}", "a photo that shows a {}", "a {}")
"""Captions of a person's own class folders, and their zero-shot sentences."""
MOST_QUERIES = 5
FOUND = 8
"""Images that a query is answered with."""


@dataclass(frozen=True)
class Words:
    """What is said of the images."""

    source: Source
    """Training images with captions."""
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    """Of zero-shot classification."""
    test: tuple[str, ...]
    """Caption of each test image."""
    queries: tuple[str, ...]


def words_of(story: Story) -> Words:
    """Scenes bring their captions; photos in class folders get sentences with the name of their class."""
    if all(story.test.captions):
        captions = tuple(captions[0] for captions in story.test.captions)
        return Words(story.source, story.classes, SCENE_TEMPLATES, captions, SCENE_QUERIES)
    classes = tuple(name.replace("_", " ") for name in story.classes)
    sentences = tuple(tuple(fill(template, name) for template in PHOTO_TEMPLATES) for name in classes)
    source = ClassCaptions(story.source, sentences)
    captions = tuple(sentences[label][0] for label in story.test.labels.tolist())
    queries = tuple(sentence[0] for sentence in sentences[:MOST_QUERIES])
    return Words(source, classes, PHOTO_TEMPLATES, captions, queries)


def compare_clips(
    story: Story, out: Path, parallel: Parallel, precision: Precision, done: Callable[[float], None]
) -> None:
    """Train both CLIPs on as many pairs; classify the test images by words, retrieve them, and search among them.

    The runs are `out`/clip/pretrained_0, scratch_0 and so on, by seed. Fills `story.report["clip"]` and
    `story.searches`.
    """
    chapter, words = story.config.captions, words_of(story)
    assert chapter is not None  # `tell` has looked.
    report: dict[str, dict[str, list[float]]] = {}
    turns = [(seed, name, side) for seed in range(chapter.seeds) for name, side in _sides(chapter).items()]
    for turn, (seed, name, side) in enumerate(turns):
        config = _fitted(side, story, seed, precision)
        if name == "pretrained":
            config = replace(config, vision_init=str(out / "pretrain"))
        config = resolve(config, images=len(words.source), machine=find_machine(parallel))
        run = out / "clip" / f"{name}_{seed}"
        reporter = StepReporter(lambda share, turn=turn: done((turn + 0.98 * share) / len(turns)))
        # There are a hundred different captions, or a few for each class: that some repeat is no news.
        _, outcome = train_clip(
            config, words.source, out=run, parallel=parallel, watchers=(reporter,), warn_of_repeats=False
        )
        end_where_stopped(outcome)
        clip = load_clip(run, device=str(parallel.device), precision=precision.format)
        scores, searches = _measure(clip, story, words)
        scores["training_loss"] = _last_losses(run)
        scores["samples_seen"] = outcome.step * config.optimization.global_batch_size
        for what, value in scores.items():
            report.setdefault(what, {}).setdefault(name, []).append(value)
        if name == "pretrained" and seed == 0:
            story.searches = searches
    story.report["clip"] = {"chance": _chance(words), **report}


def _measure(clip: Embedder, story: Story, words: Words) -> tuple[dict[str, float], list[Search]]:
    """Zero-shot accuracy, loss and R@1 on the test images; and what the queries find there."""
    images = torch.cat([clip.encode_images(batch) for batch in story.test.pixels.split(BATCH)])
    classifier = zero_shot_weights(clip, words.classes, words.templates)
    accuracy = ((images @ classifier.T).argmax(dim=1) == story.test.labels).float().mean().item()
    distinct = list(dict.fromkeys(words.test))
    which = torch.tensor([distinct.index(caption) for caption in words.test])
    pairs = pair_scores(images, clip.encode_texts(distinct)[which], which, clip.logit_scale)
    searches = []
    for query, feature in zip(words.queries, clip.encode_texts(words.queries), strict=True):
        found = tuple(nearest(feature, images, FOUND))
        searches.append(Search(query, found, sum(words.test[place] == query for place, _ in found)))
    return {"zero_shot": accuracy} | {f"test_{name}": value for name, value in pairs.items()}, searches


def _chance(words: Words) -> dict[str, float]:
    """What guessing gets: of one class among all, and of one test image among all, of which several may be right."""
    counts = [words.test.count(caption) for caption in set(words.test)]
    return {"zero_shot": 1 / len(words.classes), "r1": sum(count**2 for count in counts) / len(words.test) ** 2}


def _fitted(side: ContrastiveConfig, story: Story, seed: int, precision: Precision) -> ContrastiveConfig:
    """With the image tower of the story's pre-training, which --set may have changed."""
    pretraining = story.config.pretrain
    vision = replace(require_vit(pretraining.model, "a CLIP"), drop_path=side.model.vision.drop_path)
    return replace(
        side,
        model=replace(side.model, vision=vision),
        data=replace(side.data, normalization=pretraining.data.normalization),
        engine=replace(side.engine, seed=seed, precision=precision.format),
    )


def _last_losses(run: Path) -> float:
    """Mean over the last tenth of what was logged: single batches differ."""
    losses = [loss for _, loss in logged_losses(run / "metrics.jsonl")]
    return statistics.mean(losses[-max(1, len(losses) // 10) :])


def _sides(chapter: CaptionsChapter) -> dict[str, ContrastiveConfig]:
    return {"pretrained": chapter.pretrained, "scratch": chapter.scratch}
