"""The software that serves: nginx and a container registry of Debian, and how they are configured.

One tar of their packages, built once per host and kept in its cache (``build``, beside this file).
A configuration is a function of the folders and of the address that the program is to bind.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

VERSION: Final = "1"
"""Of the tar's contents; the build script's digest counts as well."""


@dataclass(frozen=True, slots=True)
class _Made:
    """An artifact that the build script makes."""

    file: str
    url: None = None
    sha256: None = None


@dataclass(frozen=True, slots=True)
class Root:
    """The tar, as the store wants to be asked for it.

    Attributes:
        arch: The arch that its programs are for.
    """

    arch: str
    name: str = "services"
    version: str = VERSION
    variant: str = "default"
    inputs: tuple[str, ...] = ()
    folder: Path = field(default_factory=lambda: Path(__file__).parent)

    @property
    def script(self) -> Path:
        """The build script."""
        return self.folder / "build"

    @property
    def artifacts(self) -> Mapping[str, _Made]:
        """``root``, the tar, and ``packages``, the list of what is in it."""
        return {"root": _Made("root.tar"), "packages": _Made("packages.txt")}

    def __str__(self) -> str:
        return f"{self.name} for {self.arch}"


@dataclass(frozen=True, slots=True)
class Places:
    """Where a program finds things; paths as the program sees them.

    Attributes:
        data: What it serves.
        work: Where it may write.
        etc: What its package has in ``/etc``.
    """

    data: str
    work: str
    etc: str


@dataclass(frozen=True, slots=True)
class Program:
    """A server's program.

    Attributes:
        name: What it is called in reports.
        path: The program, below the tar's root.
        arguments: Its arguments, given the path of its configuration.
        configure: Its configuration, given the places and the address to bind, ``HOST:PORT``.
        ready: The line that says that its port is bound; group ``port`` is that port, if it tells.
        port: The port it binds in a container, where nobody else is.
        inherits: Whether it takes a socket that is bound already, by nginx' variable ``NGINX``.
    """

    name: str
    path: str
    arguments: Callable[[str], tuple[str, ...]]
    configure: Callable[[Places, str], str]
    ready: re.Pattern[str]
    port: int
    inherits: bool


def _nginx(places: Places, listen: str) -> str:
    """Return nginx' configuration, in the terms of its reference (core, http modules).

    It is one process: a worker would outlive a master that was killed.
    """
    temporary = "\n  ".join(
        f'{kind}_temp_path "{places.work}/{kind}";'
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return f"""\
daemon off;
master_process off;
user root;
pid "{places.work}/nginx.pid";
error_log stderr notice;
events {{ worker_connections 512; }}
http {{
  include "{places.etc}/nginx/mime.types";
  default_type application/octet-stream;
  access_log "{places.work}/access.log";
  sendfile on;
  keepalive_timeout 3600;
  keepalive_requests 1000000;
  {temporary}
  server {{
    listen {listen};
    root "{places.data}";
    autoindex on;
  }}
}}
"""


def _registry(places: Places, listen: str) -> str:
    """Return the registry's configuration, in the terms of Distribution's reference."""
    return f"""\
version: 0.1
log:
  level: info
  formatter: json
storage:
  filesystem:
    rootdirectory: "{places.data}"
  delete:
    enabled: true
  maintenance:
    uploadpurging:
      enabled: false
http:
  addr: "{listen}"
  relativeurls: true
"""


NGINX: Final = Program(
    name="nginx",
    path="usr/sbin/nginx",
    # Without -e it opens the log file that it was compiled with.
    arguments=lambda path: ("-e", "stderr", "-c", path),
    configure=_nginx,
    # Said by the events module, after all sockets have been opened (ngx_init_cycle).
    ready=re.compile(r'using the "\w+" event method'),
    port=8080,
    inherits=True,
)

REGISTRY: Final = Program(
    name="docker-registry",
    path="usr/bin/docker-registry",
    arguments=lambda path: ("serve", path),
    configure=_registry,
    ready=re.compile(r"listening on [^\s\"]*:(?P<port>\d+)"),
    port=5000,
    inherits=False,
)
