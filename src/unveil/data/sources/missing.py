"""What to say of a path that does not exist."""

import difflib
import glob
import os


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
        near = difflib.get_close_matches(rest, os.listdir(parent), n=1, cutoff=0.5)
    except OSError:
        near = []
    if near:
        return f"{path} does not exist; did you mean {os.path.join(parent, near[0])}?"
    return f"{path} does not exist: there is no {rest} in {parent}; check the path"
