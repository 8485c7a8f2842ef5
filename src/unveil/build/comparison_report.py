"""A comparison's table, as JSON and Markdown, and its picture."""

import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path

from unveil.config.comparison import ComparisonConfig
from unveil.config.serialize import to_json
from unveil.engine.disk import needing_space, write_atomically, write_json

TABLE, DOCUMENT, PICTURE = "comparison.json", "comparison.md", "comparison.png"


@dataclass(kw_only=True)
class Row:
    """One line of the table."""

    name: str
    epochs: float | None
    """Of pre-training; None where there was none."""
    images_seen: int = 0
    """In pre-training."""
    probe: list[float] = field(default_factory=list)
    """Accuracy of each seed, 0 to 1."""
    finetune: list[float] = field(default_factory=list)
    """Accuracy of each seed and draw, 0 to 1; empty where the row cannot be fine-tuned."""
    losses: list[float] = field(default_factory=list)
    """The last of each pre-training."""
    seconds: float = 0.0
    """Of pre-training, over all seeds; of one that was stopped, since it went on."""
    note: str = ""


def write_comparison(config: ComparisonConfig, rows: list[Row], out: Path) -> None:
    """Write all three files into `out`, over those of fewer rows.

    Raises:
        UnveilError: the disk is full or refuses.
    """
    from unveil.visualize.comparison import comparison_picture
    from unveil.visualize.figures import save_picture

    out.mkdir(parents=True, exist_ok=True)
    write_json(out / TABLE, {"rows": [asdict(row) for row in rows], "settings": to_json(config)})
    with needing_space(out / DOCUMENT):
        write_atomically(out / DOCUMENT, as_markdown(config, rows))
    panels: dict[str, list[tuple[str, float | None, list[float]]]] = {
        f"linear probe ({_labels(config.probe.labels)})": [(row.name, row.epochs, row.probe) for row in rows],
        f"fine-tuning ({_labels(config.labels)})": [(row.name, row.epochs, row.finetune) for row in rows],
    }
    save_picture(comparison_picture(panels), out / PICTURE)


def as_markdown(config: ComparisonConfig, rows: list[Row]) -> str:
    """The table for people."""
    header, *cells = as_cells(config, rows)
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *cells]
    notes = [f"{row.name}: {row.note}." for row in rows if row.note]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
    return text + "".join(f"\n{note}\n" for note in notes)


def as_cells(config: ComparisonConfig, rows: list[Row]) -> list[list[str]]:
    """Header and rows: percent, mean and, over several, standard deviation."""
    header = [
        "pre-training",
        "epochs",
        "images seen",
        f"linear probe, {_labels(config.probe.labels)}",
        f"fine-tuning, {_labels(config.labels)}",
    ]
    return [header, *(_cells(row) for row in rows)]


def _cells(row: Row) -> list[str]:
    epochs = "-" if row.epochs is None else f"{row.epochs:g}"
    seen = "-" if row.epochs is None else f"{row.images_seen:,}"
    return [row.name, epochs, seen, percent(row.probe), percent(row.finetune)]


def percent(values: list[float]) -> str:
    """Mean and, of several, standard deviation."""
    if not values:
        return "-"
    mean = f"{100 * statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {100 * statistics.stdev(values):.1f}"


def _labels(count: int | None) -> str:
    return "all labels" if count is None else f"{count:,} labels"
