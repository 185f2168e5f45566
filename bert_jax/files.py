"""Files that are there whole or not at all."""

import os
import uuid

from etils import epath


def write_whole(path: str | epath.PathLike, content: str | bytes) -> None:
    """Writes a file; until it is written, and if that fails, what was there of its name stays.

    Several processes may write it at once: it is one's or another's. Of one that is killed a file
    of the name with ".partial-" and eight digits may stay beside it.
    """
    content = content.encode() if isinstance(content, str) else content
    target = epath.Path(path)
    is_special = os.path.exists(target) and not os.path.isfile(target)  # a pipe
    if is_special or str(target).startswith("/dev/"):  # /dev/stdout may lead to a file
        target.write_bytes(content)
        return
    if os.path.islink(target):
        target = epath.Path(os.path.realpath(target))
    partial = target.with_name(f"{target.name}.partial-{uuid.uuid4().hex[:8]}")
    try:
        partial.write_bytes(content)
        partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
