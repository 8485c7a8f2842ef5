"""What masked pre-training is worth with few labels: probes and fine-tuning against the same network from scratch.

    uv run python benchmarks/label_efficiency.py cifar10_12k --out runs/label_efficiency

`cifar10_12k` has train/ and test/ with class folders of small images. Everything is done by the commands that a person
would type, which are printed; a command whose run is there already is not run again, so the script goes on where it was
stopped. Each fine-tuning is judged on test/; what was chosen (the settings from scratch) was chosen on training images
that no label was drawn from: --part sweep. The tables are in docs/lab_book.md.
"""

import argparse
import csv
import json
from pathlib import Path

from commands import percent, run_once

from unveil.data.sources.folder import FolderSource
from unveil.tasks.classification.frozen_features import few_labels

SEEDS = (0, 1, 2)
HELD_OUT = 1000
"""Training images, evenly from all classes, by which settings are chosen."""

PRETRAINING = (
    *("--recipe", "small_cpu", "--steps", "4000", "--global-batch-size", "32", "--workers", "0"),
    *("--set", "optimization.warmup_steps=240", "--set", "data.crop=CenterCrop", "--set", "cache_targets=true"),
    *("--set", "masking=RandomMasking", "--set", "masking.ratio=0.4"),
)
PLAIN = ("augmentation.rand_augment=none", "augmentation.mixup=0", "augmentation.cutmix=0")
"""Crop and flip only."""
PRETRAINED = {100: ("200", ()), 1000: ("400", ()), 10_000: ("2000", ())}
"""{labels: (steps, settings beside the recipe's)}."""
SCRATCH = {
    100: ("300", (*PLAIN, "optimization.optimizer.learning_rate=3e-4", "optimization.layer_decay=none")),
    1000: ("1000", (*PLAIN, "optimization.optimizer.learning_rate=1e-3", "optimization.layer_decay=none")),
    10_000: ("4000", (*PLAIN, "optimization.optimizer.learning_rate=1e-3", "optimization.layer_decay=none")),
}
"""The best of --part sweep."""
CHANGES = {
    "RandAugment off": ("augmentation.rand_augment=none",),
    "Mixup off": ("augmentation.mixup=0",),
    "CutMix off": ("augmentation.cutmix=0",),
    "all three off": PLAIN,
    "layer decay off": ("optimization.layer_decay=none",),
}
SWEEP = {
    100: [("300", "3e-4", True), ("300", "1e-3", True), ("300", "3e-4", False), ("300", "1e-3", False)],
    1000: [("1000", "3e-4", True), ("1000", "1e-3", True), ("1000", "3e-4", False), ("1000", "1e-3", False)],
    10_000: [("1000", "5e-4", False), ("1000", "1e-3", False), ("1000", "1e-3", True), ("1000", "2e-3", True)],
}
"""From scratch: {labels: (steps, rate, whether without RandAugment, Mixup and CutMix)}."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--part", choices=("pretrain", "probe", "sweep", "finetune", "changes"), nargs="+")
    parser.add_argument("--labels", type=int, nargs="+", default=[100, 1000, 10_000])
    options = parser.parse_args()
    study = Study(options.data, options.out)
    parts = options.part or ("pretrain", "probe", "sweep", "finetune", "changes")
    if "pretrain" in parts:
        run_once(study.out / "pretrain", "pretrain", str(study.data / "train"), *PRETRAINING)
    if "probe" in parts:
        study.probe(options.labels)
    if "sweep" in parts:
        study.sweep(options.labels)
    if "finetune" in parts:
        study.compare(options.labels)
    if "changes" in parts:
        study.change()


class Study:
    def __init__(self, data: Path, out: Path) -> None:
        self.data = data.absolute()
        self.out = out.absolute()
        self.out.mkdir(parents=True, exist_ok=True)
        self.source = FolderSource(str(self.data / "train"), labelled=True)
        self.classes = self.source.classes or ()
        self.labels = self.source.labels().tolist()

    def probe(self, counts: list[int]) -> None:
        for count in counts:
            few = ("--labels", str(count), "--draws", str(len(SEEDS))) if count < len(self.labels) else ()
            where = ("probe", str(self.data), "--model", str(self.out / "pretrain"))
            run = run_once(self.out / f"probe_{count}", *where, *few, "--workers", "0")
            for method, scores in json.loads((run / "report.json").read_text())["methods"].items():
                draws = [draw["accuracy"] for draw in scores.get("of_each_draw", [])] or [scores["top1"]]
                print(f"{method}, {count} labels: {percent(draws)}", flush=True)

    def sweep(self, counts: list[int]) -> None:
        held_out = few_labels(self.labels, HELD_OUT, 1000)
        judge = self.table("held_out", held_out)
        rest = sorted(set(range(len(self.labels))) - set(held_out))
        for count in counts:
            drawn = few_labels([self.labels[place] for place in rest], min(count, len(rest)), 100)
            table = self.table(f"sweep_{count}", [rest[place] for place in drawn])
            for steps, rate, plain in SWEEP[count]:
                changes = (f"optimization.optimizer.learning_rate={rate}", "optimization.layer_decay=none")
                changes += PLAIN if plain else ()
                name = f"sweep_{count}_{steps}_{rate}_{'plain' if plain else 'augmented'}"
                print(f"{name}: {self.finetune(name, table, 100, steps, changes, judge=judge)}", flush=True)

    def compare(self, counts: list[int]) -> None:
        """Pre-trained against scratch, raw weights and their running average."""
        for count in counts:
            seeds = SEEDS if count < len(self.labels) else SEEDS[:1]
            for kind, settings in (("pretrained", PRETRAINED), ("scratch", SCRATCH)):
                steps, changes = settings[count]
                found = [
                    self.finetune(
                        f"{kind}_{count}_{seed}",
                        self.drawn(count, seed),
                        seed,
                        steps,
                        changes,
                        pretrained=kind == "pretrained",
                    )
                    for seed in seeds
                ]
                print(f"fine-tuning, {count} labels, {kind}: {self.mean(found)}", flush=True)

    def change(self) -> None:
        """1,000 labels, pre-trained: the recipe with one thing changed."""
        for name, changes in CHANGES.items():
            found = [
                self.finetune(
                    f"{name.replace(' ', '_')}_{seed}",
                    self.drawn(1000, seed),
                    seed,
                    PRETRAINED[1000][0],
                    changes,
                    pretrained=True,
                )
                for seed in SEEDS
            ]
            print(f"{name}: {self.mean(found)}", flush=True)

    def finetune(
        self,
        name: str,
        table: Path,
        seed: int,
        steps: str,
        changes: tuple[str, ...],
        *,
        judge: Path | None = None,
        pretrained: bool = False,
    ) -> tuple[float, float]:
        """Accuracy of the weights and of their running average."""
        settings = [part for change in changes for part in ("--set", change)]
        run = run_once(
            self.out / name,
            *("finetune", "classification", str(table), "--validation", str(judge or self.data / "test")),
            *("--recipe", "finetune_small", "--steps", steps, "--seed", str(seed), "--workers", "0"),
            *("--set", "engine.evaluate_every=100000", "--set", f"optimization.warmup_steps={int(steps) // 10}"),
            *(("--init-from", str(self.out / "pretrain")) if pretrained else ()),
            *settings,
        )
        last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
        return last["validation_accuracy"], last["validation_ema_accuracy"]

    def drawn(self, count: int, seed: int) -> Path:
        return self.table(f"labels_{count}_{seed}", few_labels(self.labels, count, seed))

    def table(self, name: str, places: list[int]) -> Path:
        """A CSV of path,label of these training images."""
        path = self.out / f"{name}.csv"
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("path", "label"))
            writer.writerows((self.source[place].name, self.classes[self.labels[place]]) for place in places)
        return path

    def mean(self, found: list[tuple[float, float]]) -> str:
        """Of both kinds of weights."""
        raw, averaged = zip(*found, strict=True)
        return f"weights {percent(raw)}, averaged weights {percent(averaged)}"


if __name__ == "__main__":
    main()
