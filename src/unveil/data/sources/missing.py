"""What to say of a path that does not exist."""

import glob
import os
import re
from difflib import SequenceMatcher

LIKE = 0.6
"""Share of two names' letters that must agree, in order, for one to be taken for a misspelling of the other."""

_DIGITS = re.compile(r"\d+")


def missing_path(path: str) -> str:
    """A sentence that names the first part of `path` that is not there, and the name most like it that is."""
    if glob.has_magic(path):
        return f"nothing matches {path}; check the pattern"
    parent, rest = os.path.abspath(path), ""
    while not os.path.lexists(parent):
        parent, rest = os.path.split(parent)
    if os.path.islink(parent) and not os.path.exists(parent):
        return f"{path} does not exist: {parent} is a link to {os.readlink(parent)}, which is not there"
    if not os.path.isdir(parent):
        return f"{path} does not exist: {parent} is a file, not a folder"
    try:
        names = os.listdir(parent)
    except OSError:
        names = []
    nearest = max(names, key=lambda name: _likeness(rest, name), default="")
    if _likeness(rest, nearest) >= LIKE:
        return f"{path} does not exist; did you mean {os.path.join(parent, nearest)}?"
    return f"{path} does not exist: there is no {rest} in {parent}; check the path"


def _likeness(one: str, other: str) -> float:
    """Of two file names without their suffixes, which would make any two of one kind look alike.

    Names of one series, 0012 and 0013, are not alike: one is no misspelling of the other.
    """
    first, second = (os.path.splitext(name)[0].lower() for name in (one, other))
    series = [_DIGITS.sub("#", name) for name in (first, second)]
    if first != second and series[0] == series[1] and "#" in series[0]:
        return 0.0
    return SequenceMatcher(None, first, second).ratio()
