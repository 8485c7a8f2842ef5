"""Work that is done once: each part of a comparison has a folder with its settings and what came out."""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unveil.config import UnveilError
from unveil.config.resolve import MAY_CHANGE_ON_RESUME
from unveil.config.serialize import defaults, flatten, to_json
from unveil.engine import Parallel
from unveil.engine.disk import read_json, write_json

RESULT = "result.json"

PLACES = frozenset({"init_from", "objective.tokenizer"})
"""Paths of other parts in the settings of one: they move with the folder."""

LEARNED = "pretraining."
"""In front of the settings of the part that another one starts from."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The finished ones in a folder."""

    folder: Path
    data: dict[str, Any]
    """What all of them look at: digests of images."""
    parallel: Parallel
    on_part: Callable[[str], None]
    """Told the name of each part that begins."""

    def result(
        self,
        place: Path,
        settings: Any,
        work: Callable[[], dict[str, Any]],
        *,
        beside: dict[str, Any] | None = None,
        learned: Any = None,
    ) -> dict[str, Any]:
        """What came out of a part: read where it is finished, else worked out now. Every process must call it.

        Args:
            settings: a configuration.
            beside: JSON values to be compared beside it, or in the place of some of its own.
            learned: configuration of the part that it starts from, which it depends on, too.

        Raises:
            UnveilError: it was finished with other settings or other images.
        """
        described = flatten(to_json(settings) | (beside or {}))
        usual = defaults(settings)
        described |= {f"data.{name}": value for name, value in flatten(self.data).items()}
        if learned is not None:
            described |= {f"{LEARNED}{name}": value for name, value in flatten(to_json(learned)).items()}
            usual |= {f"{LEARNED}{name}": value for name, value in defaults(learned).items()}
        described = _counting(described)
        file, name = place / RESULT, str(place.relative_to(self.folder))
        found = self.parallel.on_main(lambda: read_json(file) if file.is_file() else None)
        if found is not None:
            _check_same(name, _counting(usual | found["settings"]), _counting(usual | described))
            return found["result"]
        self.on_part(name)
        result = work()
        # What trained refers to itself here and there, and would keep gigabytes of targets until Python looks for such.
        gc.collect()

        def write() -> None:
            place.mkdir(parents=True, exist_ok=True)
            write_json(file, {"settings": described, "result": result})

        self.parallel.on_main(write)
        return result


def _counting(settings: dict[str, Any]) -> dict[str, Any]:
    """By dotted name, without those that change no result, and without the places of other parts."""
    free = MAY_CHANGE_ON_RESUME | PLACES
    return {name: value for name, value in settings.items() if name.removeprefix(LEARNED) not in free}


def _check_same(name: str, old: dict[str, Any], new: dict[str, Any]) -> None:
    differing = [one for one in {**old, **new} if old.get(one) != new.get(one)]
    if differing:
        first = differing[0]
        raise UnveilError(
            f"{name} was finished with {first} = {old.get(first)}, and {new.get(first)} is wanted now; give --out "
            "another folder, or delete that part to have it done again"
        )
