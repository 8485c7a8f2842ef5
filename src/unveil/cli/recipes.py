"""`unveil recipes`: what there is to run."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from unveil.config.override import recipe_named
from unveil.config.serialize import to_json
from unveil.recipes import CLASSIFICATION, CONTRASTIVE, PRETRAINING, PROBES

FAMILIES: tuple[tuple[str, tuple[Callable[[], Any], ...]], ...] = (
    ("unveil pretrain IMAGES --recipe NAME", PRETRAINING),
    ("unveil finetune classification DATA --recipe NAME --init-from RUN", CLASSIFICATION),
    ("unveil probe DATA --recipe NAME --model RUN", PROBES),
    ("unveil clip train PAIRS --recipe NAME --vision-init RUN", CONTRASTIVE),
)
"""The command that runs them, and the recipes."""


@dataclass(frozen=True)
class Recipes:
    """List the recipes, or print one fully resolved with its contract.

    Example: unveil recipes eva_giant
    """

    name: Annotated[str | None, tyro.conf.Positional] = None
    """Recipe to print."""

    def run(self) -> int:
        everything = [recipe for _, family in FAMILIES for recipe in family]
        if self.name is None:
            width = max(len(recipe.__name__) for recipe in everything)
            for command, family in FAMILIES:
                print(f"To run with {command}:")
                for recipe in family:
                    print(f"{recipe.__name__:<{width}}  {_docstring(recipe).splitlines()[0]}")
                print()
            print("One in full: unveil recipes NAME")
            return 0
        recipe = recipe_named(self.name, everything)
        print(_docstring(recipe))
        print(json.dumps(to_json(recipe()), indent=2))
        return 0


def _docstring(recipe: object) -> str:
    import inspect

    return inspect.getdoc(recipe) or ""
