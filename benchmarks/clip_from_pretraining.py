"""What a masked-pre-trained image tower is worth in a CLIP: the paper's claim (section 2.3.5) in miniature.

    uv run python benchmarks/clip_from_pretraining.py --pretrained runs/mine --photos cifar10_12k --captions coco \\
        --out runs/clips

`--pretrained` is a run of `unveil pretrain`. `--photos` has train/ and test/ with class folders: captions are sentences
with the class's name, and what counts is zero-shot accuracy. `--captions` is in COCO's layout, and judged by retrieval.
Each pair of runs differs in the image tower's first weights alone. Everything is done by the commands that a person
would type, which are printed; a command whose run is there already is not run again. The tables are in
docs/lab_book.md.
"""

import argparse
import csv
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from commands import mean_and_spread, percent, run_once

from unveil.data.sources.folder import FolderSource

SEEDS = (0, 1, 2)
SIDES = ("pretrained", "scratch")
SENTENCES = (
    *("a photo of a {}.", "a small photo of a {}.", "a blurry picture of a {}.", "a {}.", "this is a {}."),
    *("a close view of a {}.", "one {} in the picture.", "somebody's snapshot of a {}."),
)
CURVE_EVERY = 100
SPIKE = 2.0
"""A gradient norm so many times the median of the steps before it, ..."""
BEFORE = 25
"""... so many of them, counts as a spike."""
PHOTO_SETTINGS = (
    *("--recipe", "clip_small", "--global-batch-size", "64", "--log-every", "1", "--workers", "0"),
    *("--set", "model.text.context_length=16", "--set", f"engine.evaluate_every={CURVE_EVERY}"),
)
CAPTION_SETTINGS = (
    *("--recipe", "clip_small", "--global-batch-size", "50", "--log-every", "1", "--workers", "0"),
    *("--set", "model.text.context_length=32", "--set", f"engine.evaluate_every={CURVE_EVERY}"),
    *("--set", "model.vision.image_size=64", "--set", "model.vision.patch_size=8"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrained", type=Path, required=True)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--captions", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, nargs="+", default=[300])
    parser.add_argument("--rates", nargs="+", default=["1e-3"], help="peaks of the learning rate, of both towers")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    options = parser.parse_args()
    study = Study(options.pretrained.absolute(), options.out.absolute())
    for steps in options.steps:
        for rate in options.rates:
            if options.photos:
                study.photos(options.photos.absolute(), steps, rate, options.seeds)
            if options.captions:
                study.captions(options.captions.absolute(), steps, rate, options.seeds)


class Study:
    def __init__(self, pretrained: Path, out: Path) -> None:
        self.pretrained, self.out = pretrained, out
        out.mkdir(parents=True, exist_ok=True)

    def photos(self, data: Path, steps: int, rate: str, seeds: Sequence[int]) -> None:
        sentences = self.out / "sentences.txt"
        sentences.write_text("\n".join(SENTENCES) + "\n")
        train, test = (self.sentences_of(data / split, self.out / f"{split}.csv") for split in ("train", "test"))
        for side in SIDES:
            accuracies, runs = [], []
            for seed in seeds:
                run = self.train(
                    f"photos_{side}_{steps}_{rate}_{seed}", train, test, side, PHOTO_SETTINGS, steps, rate, seed
                )
                runs.append(run)
                measured = self.evaluate(run, str(data / "test"), "--templates", str(sentences))
                accuracies.append(measured["top1"])
            print(f"photos, {steps} steps, {rate}, {side}: zero-shot {percent(accuracies)}; {course(runs)}", flush=True)

    def captions(self, data: Path, steps: int, rate: str, seeds: Sequence[int]) -> None:
        annotations = data / "annotations"
        for side in SIDES:
            found: dict[str, list[float]] = {}
            runs = []
            for seed in seeds:
                run = self.train(
                    f"captions_{side}_{steps}_{rate}_{seed}",
                    annotations / "captions_train2017.json",
                    annotations / "captions_val2017.json",
                    *(side, CAPTION_SETTINGS, steps, rate, seed),
                )
                runs.append(run)
                measured = self.evaluate(run, str(data), "--suite", f"coco={data}")["retrieval"]["coco"]
                for name in ("text_to_image_r1", "text_to_image_r5", "image_to_text_r1", "image_to_text_r5"):
                    found.setdefault(name, []).append(measured[name])
            recalls = ", ".join(f"{name} {percent(values)}" for name, values in found.items())
            print(f"captions, {steps} steps, {rate}, {side}: {recalls}; {course(runs)}", flush=True)

    def train(
        self, name: str, train: Path, test: Path, side: str, settings: Sequence[str], steps: int, rate: str, seed: int
    ) -> Path:
        return run_once(
            self.out / name,
            *("clip", "train", str(train), "--validation", str(test), *settings),
            *("--steps", str(steps), "--seed", str(seed), "--set", f"optimization.warmup_steps={steps // 10}"),
            *("--set", f"optimization.optimizer.learning_rate={rate}"),
            *(("--vision-init", str(self.pretrained)) if side == "pretrained" else ()),
        )

    def evaluate(self, run: Path, data: str, *settings: str) -> dict:
        place = self.out / f"{run.name}_measured"
        report = run_once(place, "clip", "eval", str(run), data, *settings, "--workers", "0")
        return json.loads((report / "report.json").read_text())

    def sentences_of(self, folder: Path, table: Path) -> Path:
        """A CSV of path,caption: every image with every sentence about its class."""
        source = FolderSource(str(folder), labelled=True)
        classes = source.classes or ()
        with table.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("path", "caption"))
            for place, label in enumerate(source.labels().tolist()):
                name = classes[label].replace("_", " ")
                writer.writerows((source[place].name, sentence.format(name)) for sentence in SENTENCES)
        return table


def course(runs: Sequence[Path]) -> str:
    """Losses at equal numbers of pairs seen, and gradient norms that stand out."""
    losses: dict[int, list[float]] = {}
    spikes = []
    for run in runs:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for line in lines:
            if "validation_loss" in line:
                losses.setdefault(line["step"], []).append(line["validation_loss"])
        norms = [line["grad_norm"] for line in lines if "grad_norm" in line]
        spikes.append(
            sum(
                norm > SPIKE * statistics.median(norms[place - BEFORE : place])
                for place, norm in enumerate(norms)
                if place >= BEFORE
            )
        )
    curve = ", ".join(f"{step}: {mean_and_spread(values)}" for step, values in sorted(losses.items()))
    return f"validation loss after {curve}; gradient spikes {' + '.join(map(str, spikes))}"


if __name__ == "__main__":
    main()
