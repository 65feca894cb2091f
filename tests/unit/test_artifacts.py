"""The cache of artifacts: built once by one process, published complete, lent, verified, collected."""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import os
import select
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import textwrap
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from harness.artifacts import Manifest, Store, digest_inputs
from harness.cache import Status, locks
from harness.cache.locks import holder, lock, try_lock
from harness.catalog import load
from harness.deadline import UNSCALED
from harness.errors import (
    BuildError,
    ChecksumError,
    DiskFullError,
    StoreError,
    UsageError,
    WaitTimeoutError,
)
from tests.programs import need

ROOT = Path(__file__).resolve().parents[2]
NO_SUCH_DIGEST = "0" * 64


@dataclass(frozen=True)
class File:
    file: str
    url: str | None = None
    sha256: str | None = None
    format: str = "raw"
    sha512: str | None = None


@dataclass(frozen=True)
class Image:
    """A recipe, as a selection of the catalogue is one."""

    folder: Path
    name: str = "toy"
    arch: str = "x86_64"
    version: str = "1"
    variant: str = "core"
    script: Path | None = None
    inputs: tuple[str, ...] = (".",)
    artifacts: Mapping[str, File] = field(default_factory=lambda: {"live": File("toy.raw")})

    def __str__(self) -> str:
        return f"{self.name}:{self.version}"


Toy = Callable[..., Image]


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    """Make an image whose build script has the given shell commands."""

    def toy(body: str = 'echo content >"$out/toy.raw"', **changes: object) -> Image:
        folder = tmp_path / "images" / "toy"
        folder.mkdir(parents=True, exist_ok=True)
        script = folder / "build"
        # Each run of the script adds a line to a file outside the store.
        script.write_text(
            "#!/bin/sh\nset -eu\n"
            "arch=$2 version=$4 variant=$6 out=$8; shift 8; work=$2\n"
            f'echo run >>"{tmp_path}/runs"\n{body}\n'
        )
        script.chmod(0o755)
        return replace(Image(folder, script=script), **changes)  # type: ignore[arg-type]

    return toy


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def runs(tmp_path: Path) -> int:
    """Return the number of times that the build script was started."""
    path = tmp_path / "runs"
    return len(path.read_text().splitlines()) if path.exists() else 0


def leftovers(store: Store) -> list[str]:
    return [path.name for path in (store.root / "tmp").iterdir()]


def read_line(fd: int) -> str:
    """Return the next line of a pipe or FIFO; fail if none comes within a minute."""
    data = b""
    while not data.endswith(b"\n"):
        assert select.select([fd], [], [], 60)[0], f"no line within a minute; so far {data!r}"
        byte = os.read(fd, 1)
        assert byte, f"ended; so far {data!r}"
        data += byte
    return data.decode().rstrip("\n")


# --- building -----------------------------------------------------------------------------------


def test_built_files_are_lent_by_name(store: Store, toy: Toy) -> None:
    image = toy('echo "$arch $version $variant" >"$out/toy.raw"; echo x >"$work/kept"')
    with store.artifacts(image) as artifacts:
        assert artifacts["live"].read_text() == "x86_64 1 core\n"
        assert artifacts.files == {"live": store.where(image) / "toy.raw"}
    assert (store.root / "work" / "toy" / "kept").exists()
    assert leftovers(store) == []


def test_an_image_is_built_once(store: Store, toy: Toy, tmp_path: Path) -> None:
    for _ in range(3):
        store.artifacts(toy()).close()
    assert runs(tmp_path) == 1


def test_an_entry_that_was_copied_into_an_empty_cache_is_lent(
    store: Store, toy: Toy, tmp_path: Path
) -> None:
    """As 'harness resurrect' advises where an image builds into other files."""
    image = toy()
    store.artifacts(image).close()
    folder = store.where(image)
    elsewhere = Store(tmp_path / "elsewhere")
    shutil.copytree(folder, elsewhere.root / "entries" / folder.name)
    with elsewhere.lend(folder.name) as artifacts:
        assert artifacts["live"].read_text() == "content\n"


def test_progress_names_the_build_and_its_log(store: Store, toy: Toy) -> None:
    lines: list[str] = []
    store.artifacts(toy("echo hello; echo x >$out/toy.raw"), say=lines.append).close()
    assert lines[0].startswith("building toy:1; its log: ")
    log = Path(lines[0].split("its log: ")[1])
    assert log.read_text().splitlines()[1:] == ["hello"]
    assert lines[1].startswith("toy:1 is ready: ")
    lines.clear()
    store.artifacts(toy("echo hello; echo x >$out/toy.raw"), say=lines.append).close()
    assert lines == []


def test_undeclared_files_are_dropped(store: Store, toy: Toy) -> None:
    image = toy("echo x >$out/toy.raw; echo y >$out/other")
    store.artifacts(image).close()
    assert sorted(p.name for p in store.where(image).iterdir()) == ["manifest.json", "toy.raw"]


def test_artifacts_are_read_only(store: Store, toy: Toy) -> None:
    assert store.artifacts(toy())["live"].stat().st_mode & 0o777 == 0o444


def test_the_store_builds_a_selection_of_the_catalogue(store: Store, toy: Toy) -> None:
    folder = toy().folder
    (folder / "image.yaml").write_text(
        "{name: toy, summary: s, profile: p, build: {script: build},"
        " arches: {x86_64: {firmware: bios, artifacts: {live: {file: toy.raw}}}}}"
    )
    with store.artifacts(load(folder.parent).resolve("toy")) as artifacts:
        assert artifacts["live"].read_text() == "content\n"


# --- keys ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["arch", "version", "variant", "name"])
def test_every_selection_has_its_own_key(toy: Toy, change: str) -> None:
    assert digest_inputs(toy()) != digest_inputs(toy(**{change: "other"}))


def test_every_input_changes_the_key(toy: Toy) -> None:
    image = toy()
    keys = {digest_inputs(image)}

    def differs() -> bool:
        key = digest_inputs(image)
        new = key not in keys
        keys.add(key)
        return new

    data = image.folder / "sub" / "data"
    data.parent.mkdir()
    assert differs()
    data.write_text("a")
    assert differs()
    data.write_text("b")
    assert differs()
    data.chmod(0o755)
    assert differs()
    data.rename(data.with_name("renamed"))
    assert differs()
    (image.folder / "link").symlink_to("sub")
    assert differs()
    (image.folder / "link").unlink()
    (image.folder / "link").symlink_to("build")
    assert differs()
    (image.folder / "build").write_text("#!/bin/sh\n")
    assert differs()


def test_nothing_but_inputs_changes_the_key(toy: Toy, tmp_path: Path) -> None:
    image = toy()
    key = digest_inputs(image)
    (image.folder / "image.yaml").write_text("summary: new words")
    (image.folder / "__pycache__").mkdir()
    (image.folder / "__pycache__" / "x.pyc").write_text("")
    # The mode and the place of another checkout, by a user with another umask.
    (image.folder / "build").chmod(0o700)
    assert digest_inputs(image) == key
    moved = tmp_path / "elsewhere"
    shutil.copytree(image.folder, moved)
    assert digest_inputs(replace(image, folder=moved, script=moved / "build")) == key


def test_image_yaml_changes_the_key_if_it_is_an_input(toy: Toy) -> None:
    image = toy(inputs=("build", "image.yaml"))
    (image.folder / "image.yaml").write_text("a")
    key = digest_inputs(image)
    (image.folder / "image.yaml").write_text("b")
    assert digest_inputs(image) != key


def test_a_missing_input_is_an_error(toy: Toy) -> None:
    with pytest.raises(StoreError, match=r"an input of toy cannot be read: .*gone"):
        digest_inputs(toy(inputs=("gone",)))


# --- failures -----------------------------------------------------------------------------------


def test_the_error_of_a_failed_build_contains_the_end_of_its_log(store: Store, toy: Toy) -> None:
    image = toy("seq 1 100; echo went wrong >&2; exit 3")
    with pytest.raises(BuildError, match="ended with status 3") as caught:
        store.artifacts(image)
    lines = caught.value.evidence.splitlines()
    assert Path(lines[0]).read_text().endswith("went wrong\n")
    assert lines[1:] == [str(n) for n in range(62, 101)] + ["went wrong"]
    assert leftovers(store) == []
    assert store.list() == []


def test_the_next_call_retries_a_failed_build(store: Store, toy: Toy, tmp_path: Path) -> None:
    image = toy(f'[ -e "{tmp_path}/fixed" ] && echo x >"$out/toy.raw"')
    with pytest.raises(BuildError):
        store.artifacts(image)
    (tmp_path / "fixed").touch()
    assert store.artifacts(image)["live"].exists()


def test_the_end_of_a_hostile_log_is_short_text(store: Store, toy: Toy) -> None:
    image = toy(r"head -c 3000000 /dev/zero; printf '\377\033[2J\nend\n'; exit 1")
    with pytest.raises(BuildError) as caught:
        store.artifacts(image)
    assert caught.value.evidence.endswith("end")
    assert len(caught.value.evidence) < 5000


def test_the_error_names_the_signal_that_killed_a_script(store: Store, toy: Toy) -> None:
    with pytest.raises(BuildError, match="was killed by signal 15"):
        store.artifacts(toy("kill $$"))


def test_a_script_that_does_not_start_is_an_error(store: Store, toy: Toy) -> None:
    image = toy()
    (image.folder / "build").write_text("#!/no/such/interpreter\n")
    with pytest.raises(BuildError) as caught:
        store.artifacts(image)
    assert "No such file or directory" in caught.value.evidence


@pytest.mark.parametrize(
    "body", ["echo x >$out/other.raw", ": >$out/toy.raw", "ln -s / $out/toy.raw"]
)
def test_a_file_that_the_script_left_out_is_an_error(store: Store, toy: Toy, body: str) -> None:
    with pytest.raises(BuildError, match=r"left no file 'toy.raw' for the artifact 'live'"):
        store.artifacts(toy(body))
    assert store.list() == []


def test_a_build_ends_at_its_deadline(store: Store, toy: Toy) -> None:
    with pytest.raises(WaitTimeoutError, match="the build of toy:1"):
        store.artifacts(toy("sleep 1000"), deadline=UNSCALED.after(0.2))
    assert leftovers(store) == []


def test_no_process_of_a_build_outlives_it(store: Store, toy: Toy, tmp_path: Path) -> None:
    need("setsid")
    fifo = tmp_path / "alive"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    # One process in the script's group, one in its own session: both keep the FIFO open.
    image = toy(f'exec 8>"{fifo}"; sleep 1000 & setsid sleep 1000 & echo x >$out/toy.raw')
    store.artifacts(image).close()
    assert all_gone(reader)


def all_gone(reader: int) -> bool:
    """Return whether a FIFO had writers and all of them end within a minute."""
    waiter = select.poll()
    waiter.register(reader, select.POLLIN)
    return bool(waiter.poll(60_000)) and os.read(reader, 1) == b""


# --- more than one process ----------------------------------------------------------------------

CHILD = """
import signal, sys
from pathlib import Path
sys.path.insert(0, {root!r})
sys.path.insert(0, {here!r})
from test_artifacts import Image
from harness.artifacts import Store
folder = Path(sys.argv[1])
image = Image(folder, script=folder / "build", version=sys.argv[3])
try:
    artifacts = Store(Path(sys.argv[2])).artifacts(image, say=lambda l: print(l, flush=True))
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.exit(130)
print("has", artifacts["live"].read_text().strip(), flush=True)
sys.stdin.read()
"""

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start(store: Store) -> Iterator[Start]:
    """Start a process that leases an image, prints progress, and ends when its stdin does."""
    processes = []

    def start(image: Image) -> subprocess.Popen[bytes]:
        program = CHILD.format(root=str(ROOT), here=str(Path(__file__).parent))
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(image.folder), str(store.root), image.version],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def says(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    return read_line(process.stdout.fileno())


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[tuple[str, Callable[[], None], int]]:
    """Yield a body that pauses in the middle of a build, its resumption, and its lifeline."""
    hold, alive = tmp_path / "hold", tmp_path / "alive"
    os.mkfifo(hold)
    os.mkfifo(alive)
    reader = os.open(alive, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(hold, os.O_RDWR)
    body = (
        f'exec 8>"{alive}"; echo "$PPID" >&8\n'
        f'echo half >"$out/toy.raw"; read line <"{hold}"; echo whole >"$out/toy.raw"'
    )
    yield body, lambda: void(os.write(writer, b"go\n")), reader
    os.close(reader)
    os.close(writer)


def void(_: object) -> None:
    pass


Gate = tuple[str, Callable[[], None], int]


def test_one_process_builds_and_the_others_wait(
    toy: Toy, start: Start, gate: Gate, tmp_path: Path
) -> None:
    body, go, _ = gate
    image = toy(body)
    builder = start(image)
    assert says(builder).startswith("building toy:1")
    others = [start(image) for _ in range(3)]
    for other in others:
        assert (
            says(other) == f"another process (pid {builder.pid}) is building toy:1; waiting for it"
        )
    go()
    assert says(builder).startswith("toy:1 is ready")
    assert [says(process) for process in (builder, *others)] == ["has whole"] * 4
    assert runs(tmp_path) == 1


def test_two_versions_use_the_work_folder_one_after_the_other(
    toy: Toy, start: Start, gate: Gate, tmp_path: Path
) -> None:
    body, go, alive = gate
    first = start(toy(body))
    assert says(first).startswith("building toy:1")
    read_line(alive)
    second = start(toy(body, version="2"))
    assert says(second).startswith(f"another process (pid {first.pid}) is building toy too, ")
    assert runs(tmp_path) == 1
    go()
    assert says(second).startswith("building toy:2")
    go()
    says(second)
    assert says(second) == "has whole"


def test_a_killed_build_is_repeated(
    store: Store, toy: Toy, start: Start, gate: Gate, tmp_path: Path
) -> None:
    body, go, alive = gate
    image = toy(body)
    process = start(image)
    says(process)
    read_line(alive)
    process.kill()
    process.wait()
    # The script and its processes die, too, although their parent was killed.
    assert all_gone(alive)
    with lock(store.root / "locks" / f"{store.where(image).name}.make"):
        pass  # the guard has released it
    assert [entry.status for entry in store.list()] == [Status.INTERRUPTED]
    again = start(image)
    says(again)
    go()
    says(again)
    assert says(again) == "has whole"
    assert leftovers(store) == []
    assert runs(tmp_path) == 2


def test_gc_removes_an_interrupted_build(store: Store, toy: Toy, start: Start, gate: Gate) -> None:
    body, _, alive = gate
    image = toy(body)
    process = start(image)
    says(process)
    read_line(alive)
    assert [entry.status for entry in store.list()] == [Status.BUILDING]
    assert store.gc(everything=True).removed == (), "a build in progress is not garbage"
    process.kill()
    process.wait()
    with lock(store.root / "locks" / f"{store.where(image).name}.make"):
        pass
    collected = store.gc(keep=[image], max_age=1e9)
    assert [entry.status for entry in collected.removed] == [Status.INTERRUPTED]
    assert collected.bytes > 0
    assert leftovers(store) == []


def test_a_build_that_outlives_its_parent_keeps_the_lock(
    store: Store, toy: Toy, start: Start, gate: Gate
) -> None:
    image = toy(gate[0])
    process = start(image)
    says(process)
    guard = int(read_line(gate[2]))
    making = store.root / "locks" / f"{store.where(image).name}.make"
    os.kill(guard, signal.SIGSTOP)
    try:
        process.kill()
        process.wait()
        assert try_lock(making) is None
        assert try_lock(store.root / "locks" / "toy.work") is None
    finally:
        os.kill(guard, signal.SIGCONT)
    with lock(making, deadline=UNSCALED.after(60)):
        assert all_gone(gate[2])


def test_ctrl_c_ends_the_build_and_leaves_nothing(
    store: Store, toy: Toy, start: Start, gate: Gate
) -> None:
    body, _, alive = gate
    process = start(toy(body))
    says(process)
    read_line(alive)
    # A terminal signals the whole process group in the foreground.
    os.killpg(process.pid, signal.SIGINT)
    assert says(process) == "interrupted"
    assert all_gone(alive)
    assert leftovers(store) == []


def test_ctrl_c_ends_the_wait_for_another_build(toy: Toy, start: Start, gate: Gate) -> None:
    body, go, _ = gate
    image = toy(body)
    builder = start(image)
    says(builder)
    waiter = start(image)
    assert "waiting for it" in says(waiter)
    waiter.send_signal(signal.SIGINT)
    assert says(waiter) == "interrupted"
    go()
    says(builder)
    assert says(builder) == "has whole"


def test_a_waiting_process_builds_after_another_failed(
    store: Store, toy: Toy, start: Start, gate: Gate, tmp_path: Path
) -> None:
    body, go, _ = gate
    image = toy(f'{body}; [ "$(wc -l <"{tmp_path}/runs")" -gt 1 ]')
    builder = start(image)
    says(builder)
    waiter = start(image)
    assert "waiting for it" in says(waiter)
    go()
    assert says(waiter).startswith("building toy:1")
    go()
    says(waiter)
    assert says(waiter) == "has whole"


def test_the_wait_for_another_build_ends_at_its_deadline(
    store: Store, toy: Toy, start: Start, gate: Gate
) -> None:
    image = toy(gate[0])
    builder = start(image)
    says(builder)
    with pytest.raises(WaitTimeoutError, match=f"held by process {builder.pid}"):
        store.artifacts(image, deadline=UNSCALED.after(0.1))


# --- locks --------------------------------------------------------------------------------------


def test_a_lock_that_comes_after_the_deadline_is_released(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with lock(path), pytest.raises(WaitTimeoutError):
        lock(path, deadline=UNSCALED.after(0.05))
    # The waiting thread gets the lock now, and releases it at once.
    for thread in threading.enumerate():
        if thread.name == "flock lock":
            thread.join(60)
    assert try_lock(path) is not None


def test_the_lock_of_a_removed_file_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lock"
    descriptors: list[int] = []
    real = locks._open

    def open_and_remove(path: Path) -> int:
        descriptors.append(real(path))
        if len(descriptors) == 1:  # the holder removes the file before this process locks it
            path.unlink()
        return descriptors[-1]

    monkeypatch.setattr(locks, "_open", open_and_remove)
    with lock(path):
        assert len(descriptors) == 2
        assert try_lock(path) is None, "two processes would hold it: one the old file, one the new"


def test_a_lock_file_names_its_exclusive_holder(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with lock(path):
        assert holder(path) == os.getpid()
    assert holder(path) is None
    with lock(path, shared=True):
        assert holder(path) is None


# --- disk and permissions -----------------------------------------------------------------------


def on_a_small_disk(tmp_path: Path, program: str) -> str:
    """Run Python with a 2 MiB tmpfs at ``tmp_path/small``, in a mount namespace of its own."""
    need("unshare")
    small = tmp_path / "small"
    small.mkdir()
    prelude = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]\n"
    process = subprocess.run(
        [
            *("unshare", *(["--map-root-user"] if os.geteuid() else []), "--mount", "sh", "-ec"),
            'mount -t tmpfs -o size=2m none "$1" || exit 77; exec "$2" -c "$3"',
            *("sh", str(small), sys.executable, prelude + textwrap.dedent(program)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode == 77 or "unshare:" in process.stderr:
        pytest.skip("needs root, or user namespaces, to mount a tmpfs")
    assert process.returncode == 0, process.stderr
    return process.stdout


FULL = """
    from pathlib import Path
    from test_artifacts import Image
    from harness.errors import DiskFullError
    from harness.artifacts import Store
    folder, small = Path({folder!r}), Path({small!r})
    store = Store(small / "cache")
    try:
        store.artifacts(Image(folder, script=folder / "build"))
    except DiskFullError as error:
        print(error)
    print("left:", [str(path) for path in (store.root / "tmp").iterdir()], store.list())
    import shutil
    print("free again:", shutil.disk_usage(small).free > 1900000)
"""


@pytest.mark.parametrize(
    "body",
    [
        "head -c 4000000 /dev/zero >$out/toy.raw",
        # The script ignores the error: its file is too short, and so is its log.
        "head -c 4000000 /dev/zero >$out/toy.raw 2>/dev/null; exit 1",
        # The script removes its files after the error.
        "head -c 4000000 /dev/zero >$work/x || { rm $work/x; exit 1; }",
    ],
)
def test_a_full_disk_is_explained_and_emptied_again(toy: Toy, tmp_path: Path, body: str) -> None:
    image = toy(body)
    out = on_a_small_disk(
        tmp_path, FULL.format(folder=str(image.folder), small=str(tmp_path / "small"))
    )
    assert "no space left on the disk of " in out
    assert "HARNESS_CACHE" in out
    assert "left: [] []" in out
    assert "free again: True" in out


def test_a_full_file_system_inside_the_image_is_a_build_error(store: Store, toy: Toy) -> None:
    if shutil.disk_usage(store.root.parent).free < 2**30:
        pytest.skip("needs 1 GiB free where pytest's temporary folders are")
    with pytest.raises(BuildError, match="ended with status 1"):
        store.artifacts(toy("echo mkfs: No space left on device; exit 1"))


def test_a_disk_that_fills_up_during_a_fetch_is_explained(tmp_path: Path) -> None:
    big = tmp_path / "big"
    big.write_bytes(bytes(4_000_000))
    program = FULL.replace(
        'Image(folder, script=folder / "build")',
        "Image(folder, artifacts={{'live': File('f', 'file://{folder}', '0' * 64)}})",
    ).replace("import Image", "import File, Image")
    out = on_a_small_disk(tmp_path, program.format(folder=str(big), small=str(tmp_path / "small")))
    assert "no space left on the disk of " in out
    assert "left: [] []" in out


def test_a_cache_below_a_file_is_an_error_with_a_hint(toy: Toy, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="making toy:1: ") as caught:
        Store(tmp_path / "file" / "cache").artifacts(toy())
    assert "HARNESS_CACHE" in caught.value.hint


def test_a_read_only_cache_is_an_error_with_a_hint(toy: Toy, tmp_path: Path) -> None:
    image = toy()
    out = on_a_small_disk(
        tmp_path,
        f"""
        import subprocess
        from pathlib import Path
        from test_artifacts import Image
        from harness.errors import StoreError
        from harness.artifacts import Store
        small = {str(tmp_path / "small")!r}
        subprocess.run(["mount", "-n", "-o", "remount,bind,ro", small], check=True)
        folder = Path({str(image.folder)!r})
        try:
            Store(Path(small) / "cache").artifacts(Image(folder, script=folder / "build"))
        except StoreError as error:
            print(error)
        """,
    )
    assert "Read-only file system" in out
    assert "HARNESS_CACHE" in out


# --- fetching -----------------------------------------------------------------------------------


def fetched(url: str, content: bytes | None = None) -> Image:
    """Return an image whose only file is fetched; without content, its checksum is wrong."""
    digest = NO_SUCH_DIGEST if content is None else hashlib.sha256(content).hexdigest()
    return Image(Path("/nowhere"), artifacts={"live": File("disk.raw", url, digest)})


def test_a_file_is_fetched_once(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "a file"
    source.write_bytes(b"content")
    image = fetched(f"file://{tmp_path}/a%20file", b"content")
    assert store.artifacts(image)["live"].read_bytes() == b"content"
    source.unlink()
    assert store.artifacts(image)["live"].read_bytes() == b"content"


def test_the_key_has_the_checksum_of_a_file_and_not_its_url(tmp_path: Path) -> None:
    assert digest_inputs(fetched("file:///a", b"x")) == digest_inputs(fetched("file:///b", b"x"))
    assert digest_inputs(fetched("file:///a", b"x")) != digest_inputs(fetched("file:///a", b"y"))


def test_a_file_with_another_checksum_is_refused(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    with pytest.raises(ChecksumError) as caught:
        store.artifacts(fetched(f"file://{tmp_path}/file"))
    assert NO_SUCH_DIGEST in caught.value.what
    assert hashlib.sha256(b"content").hexdigest() in caught.value.what
    assert leftovers(store) == []
    assert store.list() == []


def test_a_file_may_have_a_sha512(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    digest = hashlib.sha512(b"content").hexdigest()

    def image(sha512: str) -> Image:
        file = File("disk.raw", f"file://{tmp_path}/file", sha512=sha512)
        return Image(Path("/nowhere"), artifacts={"live": file})

    assert store.artifacts(image(digest))["live"].read_bytes() == b"content"
    wrong = image(digest[::-1])
    assert digest_inputs(wrong) != digest_inputs(image(digest))
    with pytest.raises(ChecksumError, match=f"fetched  sha512 {digest}"):
        store.artifacts(wrong)


def test_a_file_whose_checksum_nobody_knows_is_not_fetched(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    file = File("disk.raw", f"file://{tmp_path}/file", "unknown")
    image = Image(tmp_path / "toy", artifacts={"live": file})
    with pytest.raises(UsageError, match="put the digest of the file you trust there") as caught:
        store.artifacts(image)
    assert f"`sha256` of disk.raw is unknown in {tmp_path}/toy/image.yaml" in caught.value.what
    assert leftovers(store) == []


def test_a_disk_of_another_format_is_refused_after_its_fetch(store: Store, tmp_path: Path) -> None:
    (tmp_path / "disk.raw.gz").write_bytes(content := gzip.compress(b"disk"))
    url = f"file://{tmp_path}/disk.raw.gz"
    with pytest.raises(UsageError, match="declared as raw, and is compressed by gzip") as caught:
        store.artifacts(fetched(url, content))
    assert f"'live' of toy:1, fetched from {url}" in caught.value.what
    assert leftovers(store) == []
    assert store.list() == []
    digest = hashlib.sha256(content).hexdigest()
    # Other artifacts are whatever they are; a declared qcow2 is none.
    initrd = {"initrd": File("initrd", url, digest)}
    assert store.artifacts(Image(Path("/nowhere"), artifacts=initrd))["initrd"].exists()
    update = {"update": File("update", url, digest, "qcow2")}
    with pytest.raises(UsageError, match="declared as qcow2, and is compressed by gzip"):
        store.artifacts(Image(Path("/nowhere"), artifacts=update))


def test_a_disk_that_the_script_made_in_another_format_is_refused(store: Store, toy: Toy) -> None:
    with pytest.raises(UsageError, match=r"the artifact 'live' of toy:1: .* and is a qcow2 image"):
        store.artifacts(toy('printf "QFI\\373\\0\\0\\0\\3" >"$out/toy.raw"'))
    assert store.list() == []


def kernel(machine: int) -> bytes:
    """Return an EFI program for a machine."""
    return b"MZ" + bytes(58) + struct.pack("<I4sH", 64, b"PE\0\0", machine)


def test_a_kernel_for_another_arch_is_refused_after_its_fetch(store: Store, tmp_path: Path) -> None:
    (tmp_path / "Image").write_bytes(content := kernel(0xAA64))
    url = f"file://{tmp_path}/Image"
    file = File("Image", url, hashlib.sha256(content).hexdigest())
    image = Image(Path("/nowhere"), artifacts={"kernel": file})
    with pytest.raises(UsageError) as caught:
        store.artifacts(image)
    assert caught.value.what == (
        f"Image, the artifact 'kernel' of toy:1, fetched from {url}, is made for aarch64,"
        " not for x86_64"
    )
    assert "machine 0xaa64" in caught.value.evidence
    assert store.list() == []
    assert store.artifacts(replace(image, arch="aarch64"))["kernel"].exists()
    # The files of an update server are a tar.
    with tarfile.open(tmp_path / "update.tar", "w") as tar:
        tar.add(tmp_path / "Image", "uki.efi")
    digest = hashlib.sha256((tmp_path / "update.tar").read_bytes()).hexdigest()
    update = File("update.tar", f"file://{tmp_path}/update.tar", digest)
    with pytest.raises(UsageError, match=r"^update.tar, the artifact 'update' of .* for aarch64"):
        store.artifacts(replace(image, artifacts={"update": update}))
    # Other artifacts may be programs for any machine.
    tool = replace(image, artifacts={"tool": file})
    assert store.artifacts(tool)["tool"].exists()


def test_a_disk_that_the_script_made_for_another_arch_is_refused(
    store: Store, toy: Toy, tmp_path: Path
) -> None:
    need("sfdisk")
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(8 * 1024 * 1024)
    root = "label: gpt\ntype=b921b045-1df0-41c3-af44-4c6f280d3fae\n"
    subprocess.run(["sfdisk", "-q", disk], input=root, text=True, check=True)
    image = toy(f'cp "{disk}" "$out/toy.raw"')
    with pytest.raises(UsageError, match=r"^toy.raw, the artifact 'live' of toy:1, is made for a"):
        store.artifacts(image)
    assert store.artifacts(replace(image, arch="aarch64"))["live"].exists()


def test_a_missing_local_file_is_an_error(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be read: No such file"):
        store.artifacts(fetched(f"file://{tmp_path}/none"))


CONTENT = bytes(range(256)) * 16384


class Server(BaseHTTPRequestHandler):
    """A server that breaks connections, is busy, or lacks ranges, depending on the path."""

    protocol_version = "HTTP/1.1"
    requests: list[tuple[str, str | None]]

    def do_GET(self) -> None:
        range_ = self.headers.get("Range")
        first = self.path not in [path for path, _ in self.requests]
        self.requests.append((self.path, range_))
        if self.path == "/gone":
            self.send_error(404)
        elif self.path == "/busy" and first:
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif self.path == "/huge":
            self.send_response(200)
            self.send_header("Content-Length", str(1 << 60))
            self.end_headers()
            self.close_connection = True
        else:
            start = int(range_[6:-1]) if range_ and self.path == "/breaks" else 0
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(CONTENT) - start))
            self.end_headers()
            half = first and self.path in ("/breaks", "/no-ranges")
            self.wfile.write(CONTENT[start : len(CONTENT) // 2 if half else None])
            self.close_connection = half

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    requests: list[tuple[str, str | None]] = []
    handler = type("Handler", (Server,), {"requests": requests})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", requests
        server.shutdown()
        thread.join()


Web = tuple[str, list[tuple[str, str | None]]]


@pytest.mark.parametrize("path", ["/plain", "/breaks", "/no-ranges", "/busy"])
def test_a_file_is_fetched_over_http_despite_interruptions(
    store: Store, server: Web, path: str
) -> None:
    url, _ = server
    lines: list[str] = []
    artifacts = store.artifacts(fetched(f"{url}{path}", CONTENT), say=lines.append)
    assert artifacts["live"].read_bytes() == CONTENT
    assert lines[0] == f"fetching {url}{path} (4.0 MiB)"


def test_a_broken_transfer_is_resumed(store: Store, server: Web) -> None:
    url, requests = server
    store.artifacts(fetched(f"{url}/breaks", CONTENT)).close()
    (_, first), (_, second) = requests
    assert first is None
    assert second is not None
    assert int(second.removeprefix("bytes=").removesuffix("-")) > 0


def test_a_missing_file_on_a_server_is_an_error(store: Store, server: Web) -> None:
    with pytest.raises(StoreError, match="cannot be fetched: 404"):
        store.artifacts(fetched(f"{server[0]}/gone", CONTENT))
    assert len(server[1]) == 1, "a missing file is not requested again"


def test_a_file_larger_than_the_disk_is_refused_before_the_transfer(
    store: Store, server: Web
) -> None:
    with pytest.raises(DiskFullError, match=r"/huge needs 1073741824\.0 GiB"):
        store.artifacts(fetched(f"{server[0]}/huge", CONTENT))
    assert leftovers(store) == []


def test_an_unreachable_server_is_an_error_with_a_hint(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.artifacts.fetch._ATTEMPTS", 1)
    with pytest.raises(StoreError, match="cannot be fetched") as caught:
        store.artifacts(fetched("http://127.0.0.1:1/file", CONTENT))
    assert "https_proxy" in caught.value.hint


# --- listing and removing ------------------------------------------------------------------------------


def test_a_listing_has_the_status_of_every_entry(store: Store, toy: Toy) -> None:
    assert store.list() == []
    store.artifacts(toy()).close()
    with store.artifacts(toy(version="2")):
        entries = {entry.manifest.version: entry for entry in store.list() if entry.manifest}
        assert (entries["1"].status, entries["2"].status) == (Status.READY, Status.IN_USE)
    assert entries["1"].bytes >= len("content\n")
    assert [entry.status for entry in store.list()] == [Status.READY, Status.READY]


def damage(path: Path) -> None:
    path.chmod(0o644)
    path.write_text("CONTENT\n")


def test_verify_reads_every_byte(store: Store, toy: Toy) -> None:
    image = toy()
    artifacts = store.artifacts(image)
    assert store.verify() == {}
    damage(artifacts["live"])
    faults = store.verify(remove=True)
    assert list(faults) == [artifacts.entry]
    assert "has sha256" in faults[artifacts.entry][0]
    assert artifacts["live"].exists(), "an entry in use is not removed"
    artifacts.close()
    store.verify(remove=True)
    assert not store.where(image).exists()
    assert store.artifacts(image)["live"].read_text() == "content\n"


@pytest.mark.parametrize("file", ["toy.raw", "manifest.json"])
@pytest.mark.parametrize("how", ["short", "gone"])
def test_a_damaged_entry_is_rebuilt(
    store: Store, toy: Toy, tmp_path: Path, file: str, how: str
) -> None:
    image = toy()
    store.artifacts(image).close()
    path = store.where(image) / file
    path.chmod(0o644)
    path.unlink() if how == "gone" else path.write_text("{")
    assert [entry.status for entry in store.list()] == [Status.DAMAGED]
    lines: list[str] = []
    assert store.artifacts(image, say=lines.append)["live"].read_text() == "content\n"
    assert lines[0].startswith("toy:1 in the cache is damaged; rebuilding it: ")
    assert runs(tmp_path) == 2


def test_an_entry_that_is_damaged_whenever_it_is_built_is_an_error(
    store: Store, toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Manifest, "faults", lambda *_, **__: ["toy.raw is too short"])
    with pytest.raises(StoreError, match="cannot be used as soon as it is built") as caught:
        store.artifacts(toy())
    assert caught.value.evidence == "toy.raw is too short"
    assert runs(tmp_path) == 3


def test_gc_removes_the_rest_of_a_build_whose_entry_is_in_use(store: Store, toy: Toy) -> None:
    """A process that is killed right after it has published an entry leaves an empty folder."""
    with store.artifacts(toy()) as artifacts:
        (store.root / "tmp" / artifacts.entry).mkdir()
        assert [entry.status for entry in store.gc(keep=[toy()]).removed] == [Status.INTERRUPTED]
        assert leftovers(store) == []
        assert [entry.status for entry in store.list()] == [Status.IN_USE]


def test_gc_keeps_the_entries_that_it_is_given(store: Store, toy: Toy) -> None:
    old, new = toy(), toy(version="2")
    for image in (old, new):
        store.artifacts(image).close()
    planned = store.gc(keep=[new], dry_run=True)
    assert store.where(old).exists()
    collected = store.gc(keep=[new])
    assert [entry.id for entry in collected.removed] == [entry.id for entry in planned.removed]
    assert [entry.id for entry in collected.removed] == [store.where(old).name]
    assert collected.bytes == planned.bytes > 0
    assert (store.where(old).exists(), store.where(new).exists()) == (False, True)
    assert leftovers(store) == []


def test_gc_removes_no_entry_in_use(store: Store, toy: Toy, start: Start) -> None:
    image = toy()
    process = start(image)
    says(process)
    says(process)
    assert says(process) == "has content"
    collected = store.gc(everything=True)
    assert collected.removed == ()
    assert [entry.status for entry in collected.in_use] == [Status.IN_USE]
    assert store.where(image).exists()
    process.kill()
    process.wait()
    assert len(store.gc(everything=True).removed) == 1


def test_gc_keeps_recently_used_entries(store: Store, toy: Toy) -> None:
    image = toy()
    store.artifacts(image).close()
    assert store.gc(max_age=3600).removed == ()
    old = (store.where(image) / "manifest.json").stat().st_mtime - 7200
    os.utime(store.where(image) / "manifest.json", (old, old))
    assert len(store.gc(max_age=3600, dry_run=True).removed) == 1
    store.artifacts(image).close()
    assert store.gc(max_age=3600).removed == ()


def test_gc_of_everything_leaves_nothing(store: Store, toy: Toy) -> None:
    # The build leaves a folder without write permission in its work folder.
    store.artifacts(
        toy("echo x >$out/toy.raw; mkdir $work/d; echo >$work/d/f; chmod 0 $work/d")
    ).close()
    collected = store.gc(everything=True)
    assert collected.failed == ()
    files = [path for path in store.root.rglob("*") if path.is_file()]
    assert [path.name for path in files] == ["CACHEDIR.TAG"]
    assert not any((store.root / "work").iterdir())


def test_gc_without_a_cache_makes_no_folder(store: Store) -> None:
    assert store.gc(everything=True).bytes == 0
    assert not store.root.exists()


def test_artifacts_that_are_not_closed_stay_in_use(store: Store, toy: Toy) -> None:
    image = toy()
    store.artifacts(image)
    path = store.root / "locks" / f"{store.where(image).name}.use"
    with path.open() as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_gc_removes_abandoned_locks(store: Store, tmp_path: Path) -> None:
    """A process that is killed after it has removed an entry leaves its locks."""
    store.gc()
    locks = store.root / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    for name in ("gone.make", "gone.use", "coming.make", "toy.work"):
        (locks / name).touch()
    with lock(locks / "coming.make"):
        store.gc(dry_run=True)
        assert len(list(locks.iterdir())) == 4
        store.gc()
        assert {path.name for path in locks.iterdir()} == {"coming.make", "toy.work"}
