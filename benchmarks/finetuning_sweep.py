"""Which settings suit fine-tuning with few labels best: from scratch, or from a pre-trained run.

The quickstart compares each side at its own best; this is how the best was found (docs/lab_book.md).

    uv run python benchmarks/finetuning_sweep.py --labels 1000                            # from scratch
    uv run python benchmarks/finetuning_sweep.py --labels 1000 --run runs/quickstart/pretrain
"""

import argparse
import itertools
from dataclasses import replace
from pathlib import Path

from unveil.build import build_source, find_machine, finetune
from unveil.config import RandomResizedCrop
from unveil.config.resolve import resolve
from unveil.data.samples.garments import CLASS_NAMES
from unveil.data.sources.subset import SubsetSource
from unveil.engine import Parallel, Precision, evaluate
from unveil.quickstart.images import labelled_batches, read_images
from unveil.recipes.quickstart import quickstart
from unveil.tasks.classification.frozen_features import few_labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, required=True)
    parser.add_argument("--run", type=Path, help="pre-trained run; left out: from scratch")
    parser.add_argument("--rates", type=float, nargs="+", default=[5e-4, 1e-3, 2e-3])
    parser.add_argument("--steps", type=int, nargs="+", default=[200, 400])
    parser.add_argument("--crops", type=float, nargs="+", default=[0.3, 0.6, 1.0])
    parser.add_argument("--layer-decays", type=float, nargs="+", default=[1.0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=100, help="of the labels drawn; not one of the quickstart's")
    options = parser.parse_args()

    config = quickstart()
    source = build_source(config.pretrain.data.source)
    # Judged on training scenes that no label is drawn from, not on the test scenes.
    held_out = SubsetSource(source, range(len(source) - 1000, len(source)))
    judge = read_images(held_out, config.pretrain.model.image_size, lambda share: None)
    labels = [source[place].label or 0 for place in range(len(source) - 1000)]
    subset = SubsetSource(source, few_labels(labels, options.labels, options.seed))
    base = config.finetune[0].scratch
    with Parallel.start() as parallel:
        machine = find_machine(parallel)
        precision = Precision.of(machine.precision, parallel.device)
        for rate, steps, crop, decay in itertools.product(
            options.rates, options.steps, options.crops, options.layer_decays
        ):
            side = replace(
                base,
                classes=CLASS_NAMES,
                init_from=None if options.run is None else str(options.run),
                data=replace(base.data, crop=RandomResizedCrop(scale=(crop, 1.0))),
                optimization=replace(
                    base.optimization,
                    optimizer=replace(base.optimization.optimizer, learning_rate=rate),
                    steps=steps,
                    warmup_steps=steps // 10,
                    global_batch_size=options.batch,
                    layer_decay=decay if decay < 1.0 else None,
                ),
            )
            task, _ = finetune(resolve(side, images=len(subset), machine=machine), subset, parallel=parallel)
            accuracy = evaluate(task, labelled_batches(judge), parallel, precision)["accuracy"]
            print(f"rate {rate:g}  steps {steps}  crop {crop:g}  layer decay {decay:g}  {accuracy:6.1%}", flush=True)


if __name__ == "__main__":
    main()
