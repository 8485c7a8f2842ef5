"""`unveil recipes`: what there is to run."""

import json
from dataclasses import dataclass
from typing import Annotated

import tyro

from unveil.config.override import recipe_named
from unveil.config.serialize import to_json
from unveil.recipes import PRETRAINING


@dataclass(frozen=True)
class Recipes:
    """List the recipes, or print one fully resolved with its contract.

    Example: unveil recipes eva_giant
    """

    name: Annotated[str | None, tyro.conf.Positional] = None
    """Recipe to print."""

    def run(self) -> int:
        if self.name is None:
            width = max(len(recipe.__name__) for recipe in PRETRAINING)
            for recipe in PRETRAINING:
                print(f"{recipe.__name__:<{width}}  {_docstring(recipe).splitlines()[0]}")
            print("\nOne in full: unveil recipes NAME. Run it: unveil pretrain IMAGES --recipe NAME")
            return 0
        recipe = recipe_named(self.name, PRETRAINING)
        print(_docstring(recipe))
        print(json.dumps(to_json(recipe()), indent=2))
        return 0


def _docstring(recipe: object) -> str:
    import inspect

    return inspect.getdoc(recipe) or ""
