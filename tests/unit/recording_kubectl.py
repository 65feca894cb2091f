#!/usr/bin/env python3
"""A kubectl for tests: it keeps the objects of a cluster in a file, and records each command.

It knows the commands that `runners/bootstrap` and `harness job --collect` use. $STAND holds its state.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

STAND = Path(os.environ["STAND"])


def key(item: dict[str, Any]) -> str:
    metadata = item["metadata"]
    return f"{item['kind'].lower()}/{metadata.get('namespace', '')}/{metadata['name']}"


def items(text: str) -> list[dict[str, Any]]:
    objects: list[dict[str, Any]] = []
    if text.startswith("{"):
        documents = [json.loads(text)]
    else:
        import yaml  # which takes longer than all the rest

        documents = list(yaml.safe_load_all(text))
    for each in documents:
        objects += each["items"] if each["kind"] == "List" else [each]
    return objects


def main() -> int:
    words = sys.argv[1:]
    with (STAND / "commands").open("a") as log:
        print(json.dumps(words), file=log)
    state = STAND / "objects.json"
    objects = json.loads(state.read_text()) if state.exists() else {}
    names = [word for word in words if not word.startswith("-")]
    verb = names[0]
    namespace = next((w.partition("=")[2] for w in words if w.startswith("--namespace=")), "")
    if verb == "version":
        print(
            json.dumps({"serverVersion": {"major": "1", "minor": "37+", "gitVersion": "v1.37.2"}})
        )
    elif verb == "config":
        print("laptop\ncluster-a")
    elif verb == "apply":
        for item in items(sys.stdin.read()):
            before = objects.get(key(item))
            objects[key(item)] = item
            end = "created" if before is None else "unchanged" if before == item else "configured"
            end = "serverside-applied" if "--server-side" in words else end
            print(f"{item['kind'].lower()}/{item['metadata']['name']} {end}")
        state.write_text(json.dumps(objects))
    elif verb == "get":
        if names[1] == "pods":
            print((STAND / "pods.json").read_text())
        elif names[1] == "storageclasses":
            print(json.dumps({"items": [{"metadata": {"name": "nfs"}}]}))
        elif (stored := objects.get(f"{names[1]}/{namespace}/{names[2]}")) is not None:
            print(json.dumps(stored))
        elif "--ignore-not-found" not in words:
            print(
                f'Error from server (NotFound): {names[1]} "{names[2]}" not found', file=sys.stderr
            )
            return 1
    elif verb == "wait":
        broken = STAND / "not-ready"
        if broken.exists() and broken.read_text() in words and "--for=condition=Ready" in words:
            print("error: timed out waiting for the condition", file=sys.stderr)
            return 1
    elif verb == "logs":
        print(f"log of {names[1]}")
    elif verb == "delete":
        objects.pop(f"pod/{namespace}/{names[2]}", None)
        state.write_text(json.dumps(objects))
    elif verb == "exec":
        inside = [
            word.replace("/results", str(STAND / "claim")).replace("/warm", str(STAND / "warm"))
            for word in words[words.index("--") + 1 :]
        ]
        return subprocess.run(inside, check=False).returncode
    else:
        print(f"error: unknown command {verb}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
