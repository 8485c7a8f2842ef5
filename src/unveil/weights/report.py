"""What became of every tensor when weights were loaded."""

from dataclasses import dataclass, field

SHOWN = 5
"""Names that a line of the printed report holds."""


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """Prints in a few lines: `print(report)`."""

    source: str
    """The file that was read."""
    layout: str
    """What the file was recognised as."""
    loaded: list[str]
    """Our names of everything that got its values from the file, renamed and resized ones included."""
    renamed: dict[str, str] = field(default_factory=dict)
    """Name in the file -> our name, where more than a common prefix differs."""
    resized: dict[str, str] = field(default_factory=dict)
    """Our name -> "old shape -> new shape"."""
    missing: list[str] = field(default_factory=list)
    """Ours that the file does not have: they keep their initial values."""
    unexpected: list[str] = field(default_factory=list)
    """The file's that have no place here: left out."""

    def __str__(self) -> str:
        lines = [f"loaded {len(self.loaded)} tensors from {self.source} ({self.layout})"]
        renamed = [f"{old} -> {new}" for old, new in self.renamed.items()]
        resized = [f"{name} {shapes}" for name, shapes in self.resized.items()]
        for title, names in (
            ("renamed", renamed),
            ("resized", resized),
            ("not in the file, left as initialised", self.missing),
            ("in the file, left out", self.unexpected),
        ):
            if names:
                rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
                lines.append(f"  {title}: {', '.join(names[:SHOWN])}{rest}")
        return "\n".join(lines)
