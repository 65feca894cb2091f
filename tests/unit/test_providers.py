"""The provider of an image: by its name, or by a file of the project."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness import paths
from harness.catalog import Selection, load
from harness.cluster import providers
from harness.cluster.etcd import Etcd
from harness.errors import UnknownNameError, UsageError

SKIFF = paths.bundled("images") / "skiff" / "image.yaml"

KITE = """
class Kite:
    name = "kite"
    ports = (8080,)
    virtual_address = None

    def __init__(self, segment): ...
"""
WORDS = (
    *("prepare", "first", "token", "join", "configuration", "leave"),
    *("members", "leader", "healthy", "holds", "write", "read"),
)


@pytest.fixture
def kite(tmp_path: Path) -> Selection:
    """Return skiff, whose provider is a file beside it."""
    folder = tmp_path / "images" / "skiff"
    folder.mkdir(parents=True)
    for path in SKIFF.parent.iterdir():
        if path != SKIFF:
            (folder / path.name).symlink_to(path)
    text = SKIFF.read_text().replace("provider: etcd", "provider: ../kite.py")
    (folder / "image.yaml").write_text(text)
    (folder.parent / "kite.py").write_text("")
    return load(folder.parent).resolve("skiff")


def test_by_name() -> None:
    image = load(SKIFF.parent.parent).resolve("skiff")
    assert providers.of_image(image) is Etcd
    assert providers.names() == ("etcd",)
    with pytest.raises(UnknownNameError, match="unknown provider 'etdc'"):
        providers.of("etdc")


def test_an_image_that_forms_none() -> None:
    image = load(SKIFF.parent.parent).resolve("micro")
    with pytest.raises(UsageError, match="image micro does not form clusters"):
        providers.of_image(image)


def test_by_a_file(kite: Selection, tmp_path: Path) -> None:
    words = "".join(f"    def {word}(self, *_, **__): ...\n" for word in WORDS)
    (tmp_path / "images" / "kite.py").write_text(KITE + words)
    assert providers.of_image(kite).name == "kite"


def test_a_file_without_a_provider(kite: Selection, tmp_path: Path) -> None:
    (tmp_path / "images" / "kite.py").write_text(KITE)
    with pytest.raises(UsageError, match="exactly one provider; it defines: none") as caught:
        providers.of_image(kite)
    assert "virtual_address, write" in str(caught.value)
