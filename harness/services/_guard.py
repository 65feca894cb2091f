"""Removes a container when the process that started it is gone, ``kill -9`` included.

``_guard.py CONTAINER``: a program of its own. Its standard input is a pipe whose other end only that
process has; the pipe's end is that process' end.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Wait for the end of standard input, then remove the container if it is there."""
    while os.read(0, 4096):
        pass
    # Only now: until then it is a sleeping process and nothing else.
    import docker
    from docker.errors import DockerException

    try:
        docker.from_env(timeout=60).containers.get(sys.argv[1]).remove(force=True, v=True)
    except (DockerException, OSError):
        sys.exit(1)  # It has gone, or the engine has; the next run sweeps.


if __name__ == "__main__":
    main()
