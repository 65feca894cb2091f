"""Python files of a project, outside any package: profiles and providers beside its images."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from harness.errors import UsageError


def load_file(path: Path, kind: str) -> ModuleType:
    """Import a file under a unique module name, once per process.

    Two projects may use the same file name. The module is outside ``harness``, so changes to it
    invalidate cached states as changes to a test do.

    Args:
        path: The file.
        kind: What it is, for the module's name and for messages: ``profile``.

    Raises:
        UsageError: It cannot be loaded.
    """
    path = path.resolve()
    name = f"{kind}_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is not a Python module", hint="rename it to NAME.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise UsageError(
            f"the {kind} {path} cannot be loaded: {error!r}",
            hint="import it in Python for the full traceback",
        ) from error
    return module
