"""Removes a container when the process that started it is gone, ``kill -9`` included.

Usage: ``_guard.py CONTAINER``. Standard input is a pipe whose other end only that process holds, so the
end of the pipe is the end of that process.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Wait for the end of standard input, then remove the container if it is there."""
    while os.read(0, 4096):
        pass
    # Imported late, so that the sleeping process stays small.
    import docker
    from docker.errors import DockerException

    try:
        docker.from_env(timeout=60).containers.get(sys.argv[1]).remove(force=True, v=True)
    except (DockerException, OSError):
        sys.exit(1)  # Either the container is gone, or the engine is: then the next run sweeps.


if __name__ == "__main__":
    main()
