"""The programs of the servers: nginx and a container registry of Debian, and their configuration.

One tar holds their packages. The script ``build``, beside this file, builds it once per host; the cache
keeps it. A configuration is a function of the folders and of the address that the program binds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

VERSION: Final = "1"
"""The version of the tar's contents; the digest of the build script counts as well."""


@dataclass(frozen=True, slots=True)
class _BuiltFile:
    """A file that the build script writes, as an artifact of the store."""

    file: str
    url: None = None
    format: str = "raw"
    sha256: None = None
    sha512: None = None


@dataclass(frozen=True, slots=True)
class ProgramTree:
    """The tar with the programs, as a definition for the store (:class:`harness.artifacts.Store`).

    Attributes:
        arch: The architecture of its programs.
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
    def artifacts(self) -> Mapping[str, _BuiltFile]:
        """``root``, the tar, and ``packages``, the list of its packages."""
        return {"root": _BuiltFile("root.tar"), "packages": _BuiltFile("packages.txt")}

    def __str__(self) -> str:
        return f"{self.name} for {self.arch}"


@dataclass(frozen=True, slots=True)
class Places:
    """The folders of a program, as paths that the program sees.

    Attributes:
        data: The folder that it serves.
        work: A folder in which it may write.
        etc: The ``/etc`` of its package.
    """

    data: str
    work: str
    etc: str


@dataclass(frozen=True, slots=True)
class Program:
    """A server's program.

    Attributes:
        name: The name in reports.
        path: The executable, relative to the root of the tar.
        arguments: Returns the arguments for the path of a configuration.
        configure: Returns the configuration for the folders and the address to bind, ``HOST:PORT``.
        ready: The line that says that the port is bound; the group ``port``, if any, is the port.
        port: The port that it binds in a container, where it is alone.
        inherits: Whether it accepts a bound socket by the variable ``NGINX``, as nginx does.
    """

    name: str
    path: str
    arguments: Callable[[str], tuple[str, ...]]
    configure: Callable[[Places, str], str]
    ready: re.Pattern[str]
    port: int
    inherits: bool


def _quoted(path: str) -> str:
    """Return a path as a string of nginx' configuration, and of YAML."""
    return '"' + path.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _nginx(places: Places, listen: str) -> str:
    """Return nginx' configuration, in the terms of its reference (core, http modules).

    It runs as one process: a worker would outlive a master that was killed.
    """
    temporary = "\n  ".join(
        f"{kind}_temp_path {_quoted(f'{places.work}/{kind}')};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return f"""\
daemon off;
master_process off;
user root;
pid {_quoted(f"{places.work}/nginx.pid")};
error_log stderr notice;
events {{ worker_connections 512; }}
http {{
  include {_quoted(f"{places.etc}/nginx/mime.types")};
  default_type application/octet-stream;
  access_log {_quoted(f"{places.work}/access.log")};
  sendfile on;
  keepalive_timeout 3600;
  keepalive_requests 1000000;
  {temporary}
  server {{
    listen {listen};
    root {_quoted(places.data)};
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
    rootdirectory: {_quoted(places.data)}
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
    # Without -e it opens the log file that was set at compile time.
    arguments=lambda path: ("-e", "stderr", "-c", path),
    configure=_nginx,
    # The events module prints this after all sockets were opened (ngx_init_cycle).
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
