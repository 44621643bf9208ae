"""List the files below a folder.

Links to folders are followed; hidden files and broken links are left out, with the reason.
"""

from __future__ import annotations

import os
from pathlib import Path

from afterimage.artifacts import ArtifactError

HIDDEN = "hidden"
DANGLING = "links to nothing"
CIRCLE = "links to a folder that they lie in"
ODD = "neither files nor folders"


def walk(root: Path, ignored: dict[str, str]) -> dict[str, Path]:
    """Return name -> path of all files below a folder; names are relative to it, with ``/``.

    Args:
        root: The folder.
        ignored: Receives name -> reason of every entry that is left out.

    Raises:
        ArtifactError: if a folder cannot be listed.
    """
    files: dict[str, Path] = {}

    def visit(folder: Path, prefix: str, above: tuple[Path, ...]) -> None:
        above = (*above, folder.resolve())
        for entry in folder.iterdir():
            name = prefix + os.fsencode(entry.name).decode("utf-8", "backslashreplace")
            if entry.name.startswith("."):
                ignored[name] = HIDDEN
            elif entry.is_dir():
                target = entry.resolve()
                if any(known.is_relative_to(target) for known in above):
                    ignored[name] = CIRCLE
                else:
                    visit(entry, f"{name}/", above)
            elif entry.is_file():
                files[name] = entry
            else:
                ignored[name] = DANGLING if entry.is_symlink() and not entry.exists() else ODD

    try:
        visit(root, "", ())
    except OSError as error:
        raise ArtifactError(f"{error.filename} cannot be read: {error.strerror}") from error
    return files
