"""Files and folders that appear whole or not at all."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def write_atomically(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Gives a temporary path of the same name; what was written there moves to `path` when the block ends.

    Works for a file and for a folder; missing parent folders are made. An exception inside the block leaves
    nothing new, and what stood at `path` before stays as it was. A killed process can leave a hidden folder
    `.NAME.xxxxxxxx` beside `path`, never half a result. An old file is replaced, a folder that holds something is not.

    Raises:
        ValueError: `path` is a folder that holds something.
    """
    path = pathlib.Path(path)
    if path.is_dir() and any(path.iterdir()):
        raise ValueError(f"{path} is a folder that already holds something; remove it or choose another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, because a rename is atomic only within one file system.
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        temporary = pathlib.Path(folder, path.name)
        yield temporary
        os.replace(temporary, path)
