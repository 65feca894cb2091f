"""A file as its difference from others."""

from __future__ import annotations

import contextlib
import io
import os
import random
from pathlib import Path

import pytest

from harness.evidence.bundle_delta import BLOCK, DeltaError, decode, encode


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base"
    path.write_bytes(random.Random(1).randbytes(64 * BLOCK) + b"end")
    return path


def delta_of(target: Path, *sources: Path) -> bytes:
    output = io.BytesIO()
    encode(target, sources, output)
    return output.getvalue()


def back(delta: bytes, sources: list[Path], size: int, path: Path) -> bytes:
    with path.open("wb") as output:
        decode(io.BytesIO(delta), sources, output, size)
    return path.read_bytes()


def test_a_copy_takes_a_few_bytes_and_comes_back(tmp_path: Path, base: Path) -> None:
    content = base.read_bytes()
    target = tmp_path / "target"
    target.write_bytes(b"new" + bytes(BLOCK - 3) + content[8 * BLOCK : 40 * BLOCK] + b"tail")
    delta = delta_of(target, base)
    assert len(delta) < 2 * BLOCK
    assert back(delta, [base], target.stat().st_size, tmp_path / "out") == target.read_bytes()


@pytest.mark.parametrize("seed", range(20))
def test_any_mixture_comes_back(tmp_path: Path, base: Path, seed: int) -> None:
    chance = random.Random(seed)
    content = base.read_bytes()
    other = tmp_path / "other"
    other.write_bytes(chance.randbytes(16 * BLOCK))
    target = tmp_path / "target"
    with target.open("wb") as file:
        for _ in range(chance.randrange(30)):
            match chance.randrange(4):
                case 0:
                    file.write(chance.randbytes(chance.randrange(1, 3 * BLOCK)))
                case 1:
                    start = chance.randrange(60) * BLOCK
                    file.write(content[start : start + chance.randrange(1, 5) * BLOCK])
                case 2:
                    file.seek(chance.randrange(1, 40 * BLOCK), os.SEEK_CUR)
                case 3:
                    file.write(other.read_bytes()[: 4 * BLOCK])
        file.truncate()
    delta = delta_of(target, base, other)
    assert back(delta, [base, other], target.stat().st_size, tmp_path / "out") == (
        target.read_bytes()
    )


def test_holes_stay_holes(tmp_path: Path, base: Path) -> None:
    target = tmp_path / "target"
    with target.open("wb") as file:
        file.truncate(1 << 30)
    delta = delta_of(target, base)
    back_path = tmp_path / "out"
    with back_path.open("wb") as output:
        decode(io.BytesIO(delta), [base], output, 1 << 30)
    assert len(delta) < 100
    assert back_path.stat().st_size == 1 << 30
    assert back_path.stat().st_blocks == 0


def test_a_damaged_delta_never_makes_more_than_its_size(tmp_path: Path, base: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(base.read_bytes()[: 20 * BLOCK] + random.Random(3).randbytes(5 * BLOCK))
    size = target.stat().st_size
    delta = delta_of(target, base)
    chance = random.Random(4)
    for _ in range(2000):
        data = bytearray(delta)
        data[chance.randrange(200 if chance.random() < 0.5 else len(data))] ^= (
            1 << chance.randrange(8)
        )
        if chance.random() < 0.2:
            del data[chance.randrange(len(data)) :]
        with (tmp_path / "out").open("wb") as output, contextlib.suppress(DeltaError):
            decode(io.BytesIO(bytes(data)), [base], output, size)
        assert (tmp_path / "out").stat().st_size <= size


def test_a_source_that_is_not_there_is_refused(tmp_path: Path, base: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(base.read_bytes())
    delta = delta_of(target, base)
    with pytest.raises(DeltaError, match="unknown operation"):
        back(delta, [], target.stat().st_size, tmp_path / "out")
    short = tmp_path / "short"
    short.write_bytes(b"short")
    with pytest.raises(DeltaError, match="ends too early"):
        back(delta, [short], target.stat().st_size, tmp_path / "out")
