"""The cache: made once, by one, whole or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import os
import select
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from harness import deadline
from harness.catalog import load
from harness.errors import (
    BuildError,
    ChecksumError,
    DiskFullError,
    StoreError,
    WaitTimeoutError,
)
from harness.store import State, Store, digest_inputs, locks
from harness.store.locks import holder, lock, try_lock

ROOT = Path(__file__).resolve().parents[2]
NO_SUCH_DIGEST = "0" * 64


@dataclass(frozen=True)
class File:
    file: str
    url: str | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Image:
    """What a selection of the catalogue is to the store."""

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
    """Make an image whose build script is the given shell."""

    def toy(body: str = 'echo content >"$out/toy.raw"', **changes: object) -> Image:
        folder = tmp_path / "images" / "toy"
        folder.mkdir(parents=True, exist_ok=True)
        script = folder / "build"
        # A run counts itself outside of all that the store looks after.
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
    """Return how often the build script was started."""
    path = tmp_path / "runs"
    return len(path.read_text().splitlines()) if path.exists() else 0


def leftovers(store: Store) -> list[str]:
    return [path.name for path in (store.root / "tmp").iterdir()]


def read_line(fd: int) -> str:
    """Return the next line of a pipe or FIFO; fails when none comes for a minute."""
    data = b""
    while not data.endswith(b"\n"):
        assert select.select([fd], [], [], 60)[0], f"nothing came; so far {data!r}"
        byte = os.read(fd, 1)
        assert byte, f"ended; so far {data!r}"
        data += byte
    return data.decode().rstrip("\n")


# --- building -----------------------------------------------------------------------------------


def test_what_is_built_is_lent_by_name(store: Store, toy: Toy) -> None:
    image = toy('echo "$arch $version $variant" >"$out/toy.raw"; echo x >"$work/kept"')
    with store.artifacts(image) as artifacts:
        assert artifacts["live"].read_text() == "x86_64 1 core\n"
        assert artifacts.files == {"live": store.where(image) / "toy.raw"}
    assert (store.root / "work" / "toy" / "kept").exists()
    assert leftovers(store) == []


def test_it_is_built_once(store: Store, toy: Toy, tmp_path: Path) -> None:
    for _ in range(3):
        store.artifacts(toy()).close()
    assert runs(tmp_path) == 1


def test_progress_says_what_is_done_and_where_the_log_is(store: Store, toy: Toy) -> None:
    said: list[str] = []
    store.artifacts(toy("echo hello; echo x >$out/toy.raw"), progress=said.append).close()
    assert said[0].startswith("building toy:1; its log: ")
    log = Path(said[0].split("its log: ")[1])
    assert log.read_text().splitlines()[1:] == ["hello"]
    assert said[1].startswith("toy:1 is ready: ")
    said.clear()
    store.artifacts(toy("echo hello; echo x >$out/toy.raw"), progress=said.append).close()
    assert said == []


def test_what_nobody_declared_is_not_kept(store: Store, toy: Toy) -> None:
    image = toy("echo x >$out/toy.raw; echo y >$out/other")
    store.artifacts(image).close()
    assert sorted(p.name for p in store.where(image).iterdir()) == ["manifest.json", "toy.raw"]


def test_artifacts_are_read_only(store: Store, toy: Toy) -> None:
    assert store.artifacts(toy())["live"].stat().st_mode & 0o777 == 0o444


def test_a_selection_of_the_catalogue_is_what_the_store_takes(store: Store, toy: Toy) -> None:
    folder = toy().folder
    (folder / "image.yaml").write_text(
        "{name: toy, summary: s, profile: p, build: {script: build},"
        " arches: {x86_64: {firmware: bios, artifacts: {live: {file: toy.raw}}}}}"
    )
    with store.artifacts(load(folder.parent).resolve("toy")) as artifacts:
        assert artifacts["live"].read_text() == "content\n"


# --- keys ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["arch", "version", "variant", "name"])
def test_each_selection_has_its_own_key(toy: Toy, change: str) -> None:
    assert digest_inputs(toy()) != digest_inputs(toy(**{change: "other"}))


def test_the_key_is_of_all_inputs(toy: Toy) -> None:
    image = toy()
    seen = {digest_inputs(image)}

    def differs() -> bool:
        key = digest_inputs(image)
        new = key not in seen
        seen.add(key)
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


def test_the_key_is_of_nothing_else(toy: Toy, tmp_path: Path) -> None:
    image = toy()
    key = digest_inputs(image)
    (image.folder / "image.yaml").write_text("summary: new words")
    (image.folder / "__pycache__").mkdir()
    (image.folder / "__pycache__" / "x.pyc").write_text("")
    # Another checkout, by another user with another umask.
    (image.folder / "build").chmod(0o700)
    assert digest_inputs(image) == key
    moved = tmp_path / "elsewhere"
    shutil.copytree(image.folder, moved)
    assert digest_inputs(replace(image, folder=moved, script=moved / "build")) == key


def test_the_description_counts_where_it_is_an_input(toy: Toy) -> None:
    image = toy(inputs=("build", "image.yaml"))
    (image.folder / "image.yaml").write_text("a")
    key = digest_inputs(image)
    (image.folder / "image.yaml").write_text("b")
    assert digest_inputs(image) != key


def test_an_input_that_is_gone_is_told(toy: Toy) -> None:
    with pytest.raises(StoreError, match=r"an input of toy cannot be read: .*gone"):
        digest_inputs(toy(inputs=("gone",)))


# --- failures -----------------------------------------------------------------------------------


def test_a_failed_build_carries_the_end_of_its_log(store: Store, toy: Toy) -> None:
    image = toy("seq 1 100; echo went wrong >&2; exit 3")
    with pytest.raises(BuildError, match="ended with status 3") as caught:
        store.artifacts(image)
    lines = caught.value.evidence.splitlines()
    assert Path(lines[0]).read_text().endswith("went wrong\n")
    assert lines[1:] == [str(n) for n in range(62, 101)] + ["went wrong"]
    assert leftovers(store) == []
    assert store.list() == []


def test_a_failed_build_is_tried_again(store: Store, toy: Toy, tmp_path: Path) -> None:
    image = toy(f'[ -e "{tmp_path}/fixed" ] && echo x >"$out/toy.raw"')
    with pytest.raises(BuildError):
        store.artifacts(image)
    (tmp_path / "fixed").touch()
    assert store.artifacts(image)["live"].exists()


def test_a_hostile_log_is_told_as_text(store: Store, toy: Toy) -> None:
    image = toy(r"head -c 3000000 /dev/zero; printf '\377\033[2J\nend\n'; exit 1")
    with pytest.raises(BuildError) as caught:
        store.artifacts(image)
    assert caught.value.evidence.endswith("end")
    assert len(caught.value.evidence) < 5000


def test_a_script_killed_by_a_signal_is_told(store: Store, toy: Toy) -> None:
    with pytest.raises(BuildError, match="was killed by signal 15"):
        store.artifacts(toy("kill $$"))


def test_a_script_that_does_not_start_is_told(store: Store, toy: Toy) -> None:
    image = toy()
    (image.folder / "build").write_text("#!/no/such/interpreter\n")
    with pytest.raises(BuildError) as caught:
        store.artifacts(image)
    assert "No such file or directory" in caught.value.evidence


@pytest.mark.parametrize(
    "body", ["echo x >$out/other.raw", ": >$out/toy.raw", "ln -s / $out/toy.raw"]
)
def test_a_file_that_was_not_made_is_told(store: Store, toy: Toy, body: str) -> None:
    with pytest.raises(BuildError, match=r"left no file 'toy.raw' for the artifact 'live'"):
        store.artifacts(toy(body))
    assert store.list() == []


def test_a_build_ends_at_its_deadline(store: Store, toy: Toy) -> None:
    with pytest.raises(WaitTimeoutError, match="the build of toy:1"):
        store.artifacts(toy("sleep 1000"), deadline=deadline.after(0.2, scaled=False))
    assert leftovers(store) == []


def test_nothing_that_a_build_started_outlives_it(store: Store, toy: Toy, tmp_path: Path) -> None:
    fifo = tmp_path / "alive"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    # One in the script's group, one in a session of its own: both hold the FIFO while they live.
    image = toy(f'exec 8>"{fifo}"; sleep 1000 & setsid sleep 1000 & echo x >$out/toy.raw')
    store.artifacts(image).close()
    assert all_gone(reader)


def all_gone(reader: int) -> bool:
    """Whether a FIFO had writers and all are gone, or go within a minute."""
    waiter = select.poll()
    waiter.register(reader, select.POLLIN)
    return bool(waiter.poll(60_000)) and os.read(reader, 1) == b""


# --- more than one process ----------------------------------------------------------------------

CHILD = """
import signal, sys
from pathlib import Path
sys.path.insert(0, {root!r})
sys.path.insert(0, {here!r})
from test_store import Image
from harness.store import Store
folder = Path(sys.argv[1])
image = Image(folder, script=folder / "build", version=sys.argv[3])
try:
    artifacts = Store(Path(sys.argv[2])).artifacts(image, progress=lambda l: print(l, flush=True))
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.exit(130)
print("has", artifacts["live"].read_text().strip(), flush=True)
sys.stdin.read()
"""

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start(store: Store) -> Iterator[Start]:
    """Start a process that asks for the image, says so, and keeps it until its stdin ends."""
    started = []

    def start(image: Image) -> subprocess.Popen[bytes]:
        program = CHILD.format(root=str(ROOT), here=str(Path(__file__).parent))
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(image.folder), str(store.root), image.version],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def says(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    return read_line(process.stdout.fileno())


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[tuple[str, Callable[[], None], int]]:
    """Give a body that waits in the middle of a build, how to let it go on, and its lifeline."""
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


def test_of_four_at_once_one_builds_and_the_others_wait(
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


def test_two_versions_share_one_work_folder_in_turn(
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


def test_kill_9_in_the_middle_counts_as_nothing(
    store: Store, toy: Toy, start: Start, gate: Gate, tmp_path: Path
) -> None:
    body, go, alive = gate
    image = toy(body)
    process = start(image)
    says(process)
    read_line(alive)
    process.kill()
    process.wait()
    # The script and all of it are dead as well, though nobody was left to end them.
    assert all_gone(alive)
    with lock(store.root / "locks" / f"{store.where(image).name}.make"):
        pass  # the guard has let go
    assert [entry.state for entry in store.list()] == [State.INTERRUPTED]
    again = start(image)
    says(again)
    go()
    says(again)
    assert says(again) == "has whole"
    assert leftovers(store) == []
    assert runs(tmp_path) == 2


def test_what_was_interrupted_is_garbage(store: Store, toy: Toy, start: Start, gate: Gate) -> None:
    body, _, alive = gate
    image = toy(body)
    process = start(image)
    says(process)
    read_line(alive)
    assert [entry.state for entry in store.list()] == [State.BUILDING]
    assert store.gc(everything=True).removed == (), "what is being built is not garbage"
    process.kill()
    process.wait()
    with lock(store.root / "locks" / f"{store.where(image).name}.make"):
        pass
    collected = store.gc(keep=[image], max_age=1e9)
    assert [entry.state for entry in collected.removed] == [State.INTERRUPTED]
    assert collected.bytes > 0
    assert leftovers(store) == []


def test_a_build_that_outlives_its_owner_keeps_others_waiting(
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
    with lock(making, deadline=deadline.after(60, scaled=False)):
        assert all_gone(gate[2])


def test_ctrl_c_ends_the_build_and_leaves_nothing(
    store: Store, toy: Toy, start: Start, gate: Gate
) -> None:
    body, _, alive = gate
    process = start(toy(body))
    says(process)
    read_line(alive)
    # As a terminal does it: to all of the foreground's process group.
    os.killpg(process.pid, signal.SIGINT)
    assert says(process) == "interrupted"
    assert all_gone(alive)
    assert leftovers(store) == []


def test_ctrl_c_ends_the_wait_for_another(toy: Toy, start: Start, gate: Gate) -> None:
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


def test_when_the_builder_fails_a_waiter_builds(
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


def test_the_wait_for_another_ends_at_its_deadline(
    store: Store, toy: Toy, start: Start, gate: Gate
) -> None:
    image = toy(gate[0])
    builder = start(image)
    says(builder)
    with pytest.raises(WaitTimeoutError, match=f"held by process {builder.pid}"):
        store.artifacts(image, deadline=deadline.after(0.1, scaled=False))


# --- locks --------------------------------------------------------------------------------------


def test_a_lock_that_was_given_up_is_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with lock(path), pytest.raises(WaitTimeoutError):
        lock(path, deadline=deadline.after(0.05, scaled=False))
    # The thread that was given up on gets the lock now, and lets go of it at once.
    for thread in threading.enumerate():
        if thread.name == "flock lock":
            thread.join(60)
    assert try_lock(path) is not None


def test_a_lock_file_that_was_removed_locks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lock"
    opened: list[int] = []
    real = locks._open

    def open_and_remove(path: Path) -> int:
        opened.append(real(path))
        if len(opened) == 1:  # its holder removes it between our open and our lock
            path.unlink()
        return opened[-1]

    monkeypatch.setattr(locks, "_open", open_and_remove)
    with lock(path):
        assert len(opened) == 2
        assert try_lock(path) is None, "two would hold it: one of the old file, one of the new"


def test_who_holds_a_lock_alone_is_named(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with lock(path):
        assert holder(path) == os.getpid()
    assert holder(path) is None
    with lock(path, shared=True):
        assert holder(path) is None


# --- disk and permissions -----------------------------------------------------------------------


def on_a_small_disk(tmp_path: Path, program: str) -> str:
    """Run Python with a 2 MiB tmpfs at ``tmp_path/small``, in a mount namespace of its own."""
    small = tmp_path / "small"
    small.mkdir()
    prelude = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]\n"
    done = subprocess.run(
        [
            *("unshare", *(["--map-root-user"] if os.geteuid() else []), "--mount", "sh", "-ec"),
            'mount -t tmpfs -o size=2m none "$1" || exit 77; exec "$2" -c "$3"',
            *("sh", str(small), sys.executable, prelude + textwrap.dedent(program)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 77 or "unshare:" in done.stderr:
        pytest.skip("needs root, or user namespaces, to mount a tmpfs")
    assert done.returncode == 0, done.stderr
    return done.stdout


FULL = """
    from pathlib import Path
    from test_store import Image
    from harness.errors import DiskFullError
    from harness.store import Store
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
        # The script does not look at the status: what it made is short, and its log as well.
        "head -c 4000000 /dev/zero >$out/toy.raw 2>/dev/null; exit 1",
        # The script cleans up behind itself.
        "head -c 4000000 /dev/zero >$work/x || { rm $work/x; exit 1; }",
    ],
)
def test_a_full_disk_is_told_and_nothing_left_on_it(toy: Toy, tmp_path: Path, body: str) -> None:
    image = toy(body)
    out = on_a_small_disk(
        tmp_path, FULL.format(folder=str(image.folder), small=str(tmp_path / "small"))
    )
    assert "no space left on the disk of " in out
    assert "HARNESS_CACHE" in out
    assert "left: [] []" in out
    assert "free again: True" in out


def test_a_full_disk_inside_the_image_is_the_builds_fault(store: Store, toy: Toy) -> None:
    if shutil.disk_usage(store.root.parent).free < 2**30:
        pytest.skip("needs 1 GiB free where pytest's temporary folders are")
    with pytest.raises(BuildError, match="ended with status 1"):
        store.artifacts(toy("echo mkfs: No space left on device; exit 1"))


def test_a_disk_that_fills_up_in_a_fetch_is_told(tmp_path: Path) -> None:
    big = tmp_path / "big"
    big.write_bytes(bytes(4_000_000))
    program = FULL.replace(
        'Image(folder, script=folder / "build")',
        "Image(folder, artifacts={{'live': File('f', 'file://{folder}', '0' * 64)}})",
    ).replace("import Image", "import File, Image")
    out = on_a_small_disk(tmp_path, program.format(folder=str(big), small=str(tmp_path / "small")))
    assert "no space left on the disk of " in out
    assert "left: [] []" in out


def test_a_cache_that_is_no_folder_is_told(toy: Toy, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="making toy:1: ") as caught:
        Store(tmp_path / "file" / "cache").artifacts(toy())
    assert "HARNESS_CACHE" in caught.value.hint


def test_a_cache_that_cannot_be_written_is_told(toy: Toy, tmp_path: Path) -> None:
    image = toy()
    out = on_a_small_disk(
        tmp_path,
        f"""
        import subprocess
        from pathlib import Path
        from test_store import Image
        from harness.errors import StoreError
        from harness.store import Store
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
    digest = NO_SUCH_DIGEST if content is None else hashlib.sha256(content).hexdigest()
    return Image(Path("/nowhere"), artifacts={"live": File("disk.raw", url, digest)})


def test_a_file_is_fetched_by_its_digest(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "a file"
    source.write_bytes(b"content")
    image = fetched(f"file://{tmp_path}/a%20file", b"content")
    assert store.artifacts(image)["live"].read_bytes() == b"content"
    source.unlink()
    assert store.artifacts(image)["live"].read_bytes() == b"content"


def test_another_address_of_the_same_file_is_the_same_entry(tmp_path: Path) -> None:
    assert digest_inputs(fetched("file:///a", b"x")) == digest_inputs(fetched("file:///b", b"x"))
    assert digest_inputs(fetched("file:///a", b"x")) != digest_inputs(fetched("file:///a", b"y"))


def test_another_file_is_refused_with_both_digests(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    with pytest.raises(ChecksumError) as caught:
        store.artifacts(fetched(f"file://{tmp_path}/file"))
    assert NO_SUCH_DIGEST in caught.value.what
    assert hashlib.sha256(b"content").hexdigest() in caught.value.what
    assert leftovers(store) == []
    assert store.list() == []


def test_a_file_that_is_not_there_is_told(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be read: No such file"):
        store.artifacts(fetched(f"file://{tmp_path}/none"))


CONTENT = bytes(range(256)) * 16384


class Server(BaseHTTPRequestHandler):
    """A server that breaks connections, is busy, or knows no ranges, as its path says."""

    protocol_version = "HTTP/1.1"
    asked: list[tuple[str, str | None]]

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        first = self.path not in [path for path, _ in self.asked]
        self.asked.append((self.path, wanted))
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
            start = int(wanted[6:-1]) if wanted and self.path == "/breaks" else 0
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
    asked: list[tuple[str, str | None]] = []
    handler = type("Handler", (Server,), {"asked": asked})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


Web = tuple[str, list[tuple[str, str | None]]]


@pytest.mark.parametrize("path", ["/plain", "/breaks", "/no-ranges", "/busy"])
def test_a_file_comes_over_http_whatever_happens_on_the_way(
    store: Store, server: Web, path: str
) -> None:
    url, _ = server
    said: list[str] = []
    artifacts = store.artifacts(fetched(f"{url}{path}", CONTENT), progress=said.append)
    assert artifacts["live"].read_bytes() == CONTENT
    assert said[0] == f"fetching {url}{path} (4.0 MiB)"


def test_a_broken_transfer_goes_on_where_it_broke(store: Store, server: Web) -> None:
    url, asked = server
    store.artifacts(fetched(f"{url}/breaks", CONTENT)).close()
    (_, first), (_, second) = asked
    assert first is None
    assert second is not None
    assert int(second.removeprefix("bytes=").removesuffix("-")) > 0


def test_a_file_that_upstream_lacks_is_told(store: Store, server: Web) -> None:
    with pytest.raises(StoreError, match="cannot be fetched: 404"):
        store.artifacts(fetched(f"{server[0]}/gone", CONTENT))
    assert len(server[1]) == 1, "what is gone is not asked for again"


def test_a_file_longer_than_the_disk_is_told_at_once(store: Store, server: Web) -> None:
    with pytest.raises(DiskFullError, match=r"/huge needs 1073741824\.0 GiB"):
        store.artifacts(fetched(f"{server[0]}/huge", CONTENT))
    assert leftovers(store) == []


def test_a_host_that_does_not_answer_is_told(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.store.fetch._ATTEMPTS", 1)
    with pytest.raises(StoreError, match="cannot be fetched") as caught:
        store.artifacts(fetched("http://127.0.0.1:1/file", CONTENT))
    assert "https_proxy" in caught.value.hint


# --- looking after ------------------------------------------------------------------------------


def test_a_listing_tells_what_there_is(store: Store, toy: Toy) -> None:
    assert store.list() == []
    store.artifacts(toy()).close()
    with store.artifacts(toy(version="2")):
        entries = {entry.manifest.version: entry for entry in store.list() if entry.manifest}
        assert (entries["1"].state, entries["2"].state) == (State.READY, State.IN_USE)
    assert entries["1"].bytes >= len("content\n")
    assert [entry.state for entry in store.list()] == [State.READY, State.READY]


def damage(path: Path) -> None:
    path.chmod(0o644)
    path.write_text("CONTENT\n")


def test_verify_reads_every_byte(store: Store, toy: Toy) -> None:
    image = toy()
    artifacts = store.artifacts(image)
    assert store.verify() == {}
    damage(artifacts["live"])
    faults = store.verify(remove=True)
    assert list(faults) == [artifacts.id]
    assert "has sha256" in faults[artifacts.id][0]
    assert artifacts["live"].exists(), "what is in use is not removed"
    artifacts.close()
    store.verify(remove=True)
    assert not store.where(image).exists()
    assert store.artifacts(image)["live"].read_text() == "content\n"


@pytest.mark.parametrize("file", ["toy.raw", "manifest.json"])
@pytest.mark.parametrize("how", ["short", "gone"])
def test_what_is_damaged_is_made_anew(
    store: Store, toy: Toy, tmp_path: Path, file: str, how: str
) -> None:
    image = toy()
    store.artifacts(image).close()
    path = store.where(image) / file
    path.chmod(0o644)
    path.unlink() if how == "gone" else path.write_text("{")
    assert [entry.state for entry in store.list()] == [State.DAMAGED]
    said: list[str] = []
    assert store.artifacts(image, progress=said.append)["live"].read_text() == "content\n"
    assert said[0].startswith("toy:1 in the cache is damaged, making it anew: ")
    assert runs(tmp_path) == 2


def test_gc_keeps_what_is_wanted(store: Store, toy: Toy) -> None:
    old, new = toy(), toy(version="2")
    for image in (old, new):
        store.artifacts(image).close()
    would = store.gc(keep=[new], dry_run=True)
    assert store.where(old).exists()
    done = store.gc(keep=[new])
    assert [entry.id for entry in done.removed] == [entry.id for entry in would.removed]
    assert [entry.id for entry in done.removed] == [store.where(old).name]
    assert done.bytes == would.bytes > 0
    assert (store.where(old).exists(), store.where(new).exists()) == (False, True)
    assert leftovers(store) == []


def test_gc_removes_nothing_that_is_in_use(store: Store, toy: Toy, start: Start) -> None:
    image = toy()
    process = start(image)
    says(process)
    says(process)
    assert says(process) == "has content"
    collected = store.gc(everything=True)
    assert collected.removed == ()
    assert [entry.state for entry in collected.in_use] == [State.IN_USE]
    assert store.where(image).exists()
    process.kill()
    process.wait()
    assert len(store.gc(everything=True).removed) == 1


def test_gc_goes_by_the_last_use(store: Store, toy: Toy) -> None:
    image = toy()
    store.artifacts(image).close()
    assert store.gc(max_age=3600).removed == ()
    old = (store.where(image) / "manifest.json").stat().st_mtime - 7200
    os.utime(store.where(image) / "manifest.json", (old, old))
    assert len(store.gc(max_age=3600, dry_run=True).removed) == 1
    store.artifacts(image).close()
    assert store.gc(max_age=3600).removed == ()


def test_gc_of_everything_leaves_nothing(store: Store, toy: Toy) -> None:
    # A work folder without write permission, as a build may leave it.
    store.artifacts(
        toy("echo x >$out/toy.raw; mkdir $work/d; echo >$work/d/f; chmod 0 $work/d")
    ).close()
    collected = store.gc(everything=True)
    assert collected.failed == ()
    files = [path for path in store.root.rglob("*") if path.is_file()]
    assert [path.name for path in files] == ["CACHEDIR.TAG"]
    assert not any((store.root / "work").iterdir())


def test_gc_of_no_cache_does_nothing(store: Store) -> None:
    assert store.gc(everything=True).bytes == 0
    assert not store.root.exists()


def test_who_forgets_the_artifacts_keeps_them(store: Store, toy: Toy) -> None:
    image = toy()
    store.artifacts(image)
    path = store.root / "locks" / f"{store.where(image).name}.use"
    with path.open() as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_locks_of_what_is_gone_go_too(store: Store, tmp_path: Path) -> None:
    """Of who was killed between removing an entry and its locks."""
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
