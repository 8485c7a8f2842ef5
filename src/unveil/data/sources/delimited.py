"""Two columns of a CSV or TSV file: the path of an image, and what is said of it."""

import codecs
import csv
import os
from collections.abc import Iterator
from itertools import chain

from unveil.config.errors import UnveilError
from unveil.data.sources.missing import missing_path

TABLE_SUFFIXES = (".csv", ".tsv")

PATH_COLUMNS = ("path", "file", "filename", "file_name", "filepath", "image", "image_path")
"""What a header may call the paths, in any case."""


def read_pairs(
    path: str, what: str, names: tuple[str, ...], *, any_bytes: bool = False
) -> Iterator[tuple[int, str, str]]:
    """Number of the line, path and `what` of every row that is not empty, without space around them.

    Fields may be quoted. A first line that names both columns is a header; without one the first two columns are meant.
    The separator is a tab in a .tsv; in a .csv a comma, or, where the first line has none, a semicolon or a tab.

    Args:
        what: "label" or "caption", for messages.
        names: what a header may call that column, in any case; other columns are not looked at.
        any_bytes: bytes that are not UTF-8 come as Python's "surrogateescape" has them, instead of an error.

    Raises:
        UnveilError: no such file, not UTF-8, no rows, a missing column, more columns than the first line has, or an
            empty path: with the number of the line.
    """
    lines = _lines(path, what, "surrogateescape" if any_bytes else "strict")
    first = next(lines, None)
    if first is None:
        raise UnveilError(f"{path} has no rows; write one path,{what} a line")
    columns = _columns(path, first[1], what, names)
    if columns is not None:
        second = next(lines, None)
        if second is None:
            raise UnveilError(f"{path} has a header and no rows; write one path,{what} a line")
        lines = chain([second], lines)
    else:
        lines, columns = chain([first], lines), (0, 1)
    for line, fields in lines:
        if max(columns) >= len(fields):
            raise UnveilError(f"{path}, line {line}: {len(fields)} columns, and a path and a {what} are needed")
        if any(fields[len(first[1]) :]):
            raise UnveilError(
                f"{path}, line {line}: {len(fields)} columns, and the first line has {len(first[1])}; put quotes "
                f"around a {what} that holds the separator"
            )
        image, text = fields[columns[0]], fields[columns[1]]
        if not image:
            raise UnveilError(f"{path}, line {line}: the path is empty")
        yield line, image, text


def _lines(path: str, what: str, errors: str) -> Iterator[tuple[int, list[str]]]:
    """Number of the line and fields of every row that is not empty."""
    if not os.path.exists(path):
        raise UnveilError(missing_path(path))
    line = 0
    try:
        with open(path, "rb") as start:
            if start.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
                raise UnveilError(f"cannot read {path} (it is not UTF-8 text); give a table of path,{what}")
        with open(path, encoding="utf-8-sig", errors=errors, newline="") as file:
            first = file.readline()
            file.seek(0)
            reader = csv.reader(file, delimiter=_separator(path, first), strict=True)
            for row in reader:
                line = reader.line_num
                fields = [field.strip() for field in row]
                if any(fields):
                    yield line, fields
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        reason = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else str(error)
        place = f", after line {line}" if line else ""
        raise UnveilError(f"cannot read {path}{place} ({reason}); give a table of path,{what}") from None


def _columns(path: str, first: list[str], what: str, names: tuple[str, ...]) -> tuple[int, int] | None:
    """Places of the two columns that a header names; None where the first row is none."""
    fields = [field.lower() for field in first]
    found = [next((fields.index(name) for name in known if name in fields), None) for known in (PATH_COLUMNS, names)]
    if found == [None, None] or os.path.isfile(os.path.join(os.path.dirname(path), first[0])):
        return None
    if found[0] is None or found[1] is None:
        wanted = names if found[1] is None else PATH_COLUMNS
        raise UnveilError(
            f"{path} has the columns {', '.join(first)}, and none of them is called {wanted[0]} "
            f"(or {', '.join(wanted[1:])})"
        )
    return found[0], found[1]


def _separator(path: str, first: str) -> str:
    if path.lower().endswith(".tsv"):
        return "\t"
    return next((mark for mark in ",;\t" if mark in first), ",")
