"""The container of a bundle: what is written is read, and nothing else is."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import resource
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import zstandard

from harness.errors import BundleError, DiskFullError
from harness.evidence import bundle_archive as archives
from harness.evidence.bundle_archive import Archive, Member, TooLargeError, extract

FILES = {
    "evidence/timeline.json": b"{}",
    "evidence/micro/serial.log": b"Linux version 6.12\n" * 300,
    "machines/micro/state": bytes(range(256)) * 500,
    "machines/micro/empty": b"",
}


def make(folder: Path, files: dict[str, bytes] | None = None, **options: int) -> Path:
    """Write a bundle of some files, whose manifest is the list of its members."""
    members = []
    for number, (path, content) in enumerate((files or FILES).items()):
        source = folder / f"source-{number}"
        source.write_bytes(content)
        members.append((Member.of(path, source), source))
    manifest = json.dumps([[m.path, m.size, m.sha256] for m, _ in members]).encode()
    bundle = folder / "bundle.tar.zst"
    archives.write(bundle, manifest, members, **options)
    return bundle


def members_of(archive: Archive) -> list[Member]:
    return [Member(*each) for each in json.loads(archive.manifest)]


def forged(path: Path, tar: bytes) -> Path:
    """Write a bundle whose checksums are right, around any archive."""
    body = zstandard.ZstdCompressor(write_checksum=True).compress(tar)
    size = (len(archives.MARK) + 32).to_bytes(4, "little")
    trailer = (0x184D2A50).to_bytes(4, "little") + size + archives.MARK
    path.write_bytes(body + trailer + hashlib.sha256(body).digest())
    return path


def plain(path: Path) -> bytes:
    """Return the archive of a bundle, decompressed."""
    reader = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(path.read_bytes()))
    return reader.read()


def read_all(path: Path, folder: Path) -> None:
    with Archive(path) as archive:
        try:
            members = members_of(archive)
        except (ValueError, TypeError) as error:
            # The manifest is read by another module, which is strict as well.
            raise archive.fault(str(error)) from error
        extract(archive, members, folder)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = make(tmp_path)
    read_all(path, tmp_path / "out")
    contents = {
        str(file.relative_to(tmp_path / "out")): file.read_bytes()
        for file in (tmp_path / "out").rglob("*")
        if file.is_file()
    }
    assert contents == FILES
    assert path.stat().st_mode & 0o777 == 0o600


def test_only_wanted_files_are_written_and_all_are_compared(tmp_path: Path) -> None:
    path = make(tmp_path)
    with Archive(path) as archive:
        members = members_of(archive)
        extract(archive, members, tmp_path / "out", lambda name: name.startswith("evidence/"))
    assert not (tmp_path / "out/machines").exists()
    wrong = [*members[:2], Member(members[2].path, members[2].size, "0" * 64), members[3]]
    with Archive(path) as archive, pytest.raises(BundleError, match="another digest"):
        extract(archive, wrong, tmp_path / "other", lambda name: name.startswith("evidence/"))
    assert not (tmp_path / "other").exists()


def test_tar_reads_it(tmp_path: Path) -> None:
    path = make(tmp_path)
    with tarfile.open(fileobj=io.BytesIO(plain(path))) as archive:
        assert archive.getnames() == ["manifest.json", *FILES]
        assert archive.extractfile("machines/micro/state").read() == FILES["machines/micro/state"]  # type: ignore[union-attr]


def test_a_log_that_grows_is_cut_where_it_was(tmp_path: Path) -> None:
    log = tmp_path / "serial.log"
    log.write_bytes(b"first\n")
    member = Member.of("evidence/serial.log", log)
    log.write_bytes(b"first\nsecond\n")
    manifest = json.dumps([[member.path, member.size, member.sha256]]).encode()
    archives.write(tmp_path / "b", manifest, [(member, log)])
    read_all(tmp_path / "b", tmp_path / "out")
    assert (tmp_path / "out/evidence/serial.log").read_bytes() == b"first\n"


def test_a_file_that_has_changed_leaves_no_half_of_a_bundle(tmp_path: Path) -> None:
    log = tmp_path / "serial.log"
    log.write_bytes(b"first\n")
    member = Member.of("evidence/serial.log", log)
    log.write_bytes(b"other\n")
    with pytest.raises(OSError, match="has changed"):
        archives.write(tmp_path / "b", b"[]", [(member, log)])
    assert [each.name for each in tmp_path.iterdir()] == ["serial.log"]


ENDS = """
import os, resource, signal, sys
from pathlib import Path
from harness.evidence import bundle_archive as archives

folder, way = Path(sys.argv[1]), sys.argv[2]
member = archives.Member.of("noise", folder / "noise")
if way == "full":
    # As a full disk does it: the write of some byte fails.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
else:
    class Sink(archives._Sink):
        def write(self, data):
            count = super().write(data)
            if len(data) and self._output.tell() > 1 << 20:
                os.kill(os.getpid(), signal.SIGKILL)
            return count
    archives._Sink = Sink
archives.write(folder / "bundle.tar.zst", b"{}", [(member, folder / "noise")])
"""


@pytest.mark.parametrize("way", ["full", "killed"])
@pytest.mark.parametrize("old", [b"", b"the one before"])
def test_a_write_that_ends_half_way_leaves_the_final_name_alone(
    tmp_path: Path, way: str, old: bytes
) -> None:
    (tmp_path / "noise").write_bytes(random.Random(1).randbytes(4 << 20))
    path = tmp_path / "bundle.tar.zst"
    if old:
        path.write_bytes(old)
    words = [sys.executable, "-c", ENDS, str(tmp_path), way]
    process = subprocess.run(words, capture_output=True, check=False)
    assert process.returncode == (-9 if way == "killed" else 1), process.stderr
    assert (b"File too large" in process.stderr) == (way == "full")
    assert (path.read_bytes() if path.exists() else b"") == old
    drafts = [each for each in tmp_path.iterdir() if each.name.endswith(".part")]
    # The next run removes what a killed one leaves.
    assert len(drafts) == (1 if way == "killed" else 0)
    assert all(each.match(".*.part") and each.stat().st_mode & 0o77 == 0 for each in drafts)


def test_a_bundle_has_at_most_its_limit(tmp_path: Path) -> None:
    noise = {"machines/m/state": random.Random(1).randbytes(3 << 20)}
    with pytest.raises(TooLargeError):
        make(tmp_path, noise, most=2 << 20)
    assert not (tmp_path / "bundle.tar.zst").exists()
    assert make(tmp_path, noise, most=4 << 20).stat().st_size < 4 << 20


@pytest.mark.parametrize("left", [0, 1, 100, 500, -1, -20, -60])
def test_a_bundle_that_is_cut_short_is_refused(tmp_path: Path, left: int) -> None:
    path = make(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[:left])
    with pytest.raises(BundleError, match=r"cut short|damaged"):
        Archive(path)


@pytest.mark.parametrize(
    ("content", "why"),
    [(b"hello\n" * 100, "another kind of file"), (b"", "cut short")],
    ids=["text", "empty"],
)
def test_a_foreign_file_is_refused(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=why):
        Archive(path)


def test_a_folder_a_pipe_and_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot be read"):
        Archive(tmp_path / "absent")
    with pytest.raises(BundleError, match="cannot be read"):
        Archive(tmp_path)
    with pytest.raises(BundleError, match="not a file"):
        Archive(Path(os.devnull))


def test_the_container_of_another_version_is_refused(tmp_path: Path) -> None:
    path = make(tmp_path)
    content = bytearray(path.read_bytes())
    content[-33] = 2
    path.write_bytes(content)
    with pytest.raises(BundleError, match="another version of Harness"):
        Archive(path)


@pytest.mark.parametrize(
    "path",
    [
        "../outside",
        "/etc/passwd",
        "a/../../outside",
        "./a",
        "a//b",
        "a\\b",
        "a\nb",
        "",
        "a/",
        "x" * 256,
    ],
)
def test_a_path_that_is_not_plain_is_refused(tmp_path: Path, path: str) -> None:
    bad = Member(path, 1, hashlib.sha256(b"x").hexdigest())
    manifest = json.dumps([[bad.path, bad.size, bad.sha256]]).encode()
    info = tarfile.TarInfo("manifest.json")
    tar = archives.header(info.name, len(manifest)) + manifest + bytes(-len(manifest) % 512)
    bundle = forged(tmp_path / "b", tar + bytes(1024))
    with pytest.raises(BundleError, match="not a plain relative path"):
        read_all(bundle, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("paths", "why"),
    [
        (["a", "a"], "twice"),
        (["a", "a/b"], "a file and a folder"),
        (["a/b", "a"], "a file and a folder"),
        (["manifest.json"], "twice"),
    ],
)
def test_two_files_with_one_path_are_refused(paths: list[str], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        archives.check_paths([Member(path, 0, "0" * 64) for path in paths])


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE]
)
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    manifest = json.dumps([["a", 0, hashlib.sha256().hexdigest()]]).encode()
    info = tarfile.TarInfo("a")
    info.type, info.linkname, info.mode = kind, "/etc/passwd", 0o600
    tar = archives.header("manifest.json", len(manifest)) + manifest + bytes(-len(manifest) % 512)
    bundle = forged(tmp_path / "b", tar + info.tobuf(tarfile.USTAR_FORMAT) + bytes(1024))
    with pytest.raises(BundleError, match="the next file in it is not a"):
        read_all(bundle, tmp_path / "out")


def test_more_than_the_manifest_lists_is_refused(tmp_path: Path) -> None:
    tar = plain(make(tmp_path))
    more = archives.header("evil", 0)
    bundle = forged(tmp_path / "b", tar[:-1024] + more + bytes(1024))
    with pytest.raises(BundleError, match="more in it than its manifest lists"):
        read_all(bundle, tmp_path / "out")


def test_a_bomb_is_refused(tmp_path: Path) -> None:
    size = 1 << 40
    manifest = json.dumps([["bomb", size, "0" * 64]]).encode()
    tar = archives.header("manifest.json", len(manifest)) + manifest + bytes(-len(manifest) % 512)
    with pytest.raises(BundleError, match="overflow in number field"):
        bundle = forged(tmp_path / "b", tar + bytes(1024))
        with Archive(bundle) as archive:
            list(archive.contents(members_of(archive)))
    many = [[f"bomb-{number}", (8 << 30) - 1, "0" * 64] for number in range(10)]
    manifest = json.dumps(many).encode()
    tar = archives.header("manifest.json", len(manifest)) + manifest + bytes(-len(manifest) % 512)
    with Archive(forged(tmp_path / "c", tar + bytes(1 << 20))) as archive:
        with pytest.raises(BundleError, match="too large for its size"):
            list(archive.contents(members_of(archive)))
        with pytest.raises((DiskFullError, BundleError)):
            extract(archive, members_of(archive), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_large_window_is_refused(tmp_path: Path) -> None:
    path = make(tmp_path)
    tar = plain(path)
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=30)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    body = packer.compress(tar) + packer.flush()
    size = (len(archives.MARK) + 32).to_bytes(4, "little")
    trailer = (0x184D2A50).to_bytes(4, "little") + size + archives.MARK
    path.write_bytes(body + trailer + hashlib.sha256(body).digest())
    with pytest.raises(BundleError, match="zstd refuses it"):
        Archive(path)


def test_no_damage_passes(tmp_path: Path) -> None:
    path = make(tmp_path)
    content = path.read_bytes()
    chance = random.Random(7)
    for number in range(1000):
        path.write_bytes(mutated(content, chance))
        with pytest.raises(BundleError):
            read_all(path, tmp_path / f"out-{number}")
    assert [each for each in tmp_path.iterdir() if each.name.startswith("out")] == []


def test_no_forged_archive_passes(tmp_path: Path) -> None:
    tar = plain(make(tmp_path))
    path = tmp_path / "forged"
    chance = random.Random(8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(1000):
        forged(path, mutated(tar, chance))
        with pytest.raises(BundleError):
            read_all(path, tmp_path / f"out-{number}")
    assert [each for each in tmp_path.iterdir() if each.name.startswith("out")] == []
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


def mutated(content: bytes, chance: random.Random) -> bytes:
    """Return other bytes: some changed, cut out, put in, doubled, or cut off."""
    data = bytearray(content)
    while bytes(data) == content:
        place = chance.randrange(len(content))
        length = chance.choice((1, 2, 16, 512))
        match chance.randrange(5):
            case 0:
                data[place] ^= 1 << chance.randrange(8)
            case 1:
                del data[place : place + length]
            case 2:
                data[place:place] = chance.randbytes(length)
            case 3:
                data[place:place] = data[place : place + length]
            case 4:
                del data[place:]
    return bytes(data)


def test_zstd_itself_reads_it(tmp_path: Path) -> None:
    path = make(tmp_path)
    try:
        process = subprocess.run(["zstd", "-dc", str(path)], capture_output=True, check=True)
    except FileNotFoundError:
        pytest.skip("zstd is not installed: apt install zstd")
    assert process.stdout == plain(path)
