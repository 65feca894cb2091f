"""Text and QR codes in pictures of a screen, which a guest drew: wrong ones, huge ones, and none."""

from __future__ import annotations

import contextlib
import random
import re
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import zxingcpp

from harness.deadline import NEVER, UNSCALED, Scale
from harness.errors import GuestStoppedError, HostError, UsageError, WaitTimeoutError
from harness.evidence.timeline import Timeline
from harness.machine import display as display_module
from harness.machine import picture as picture_module
from harness.machine.display import Display
from harness.machine.parts import Parts
from harness.machine.picture import MOST_PIXELS, MOST_SIDE, MOST_TEXT, Picture, grab
from harness.qemu.vga import VgaText
from harness.scope import Scope
from tests.programs import needs

# The glyphs of a VGA font for these letters: 8 x 8, a byte a row, the left pixel in the highest bit.
FONT = {
    "H": "c6c6c6fec6c6c600",
    "E": "fe6268786862fe00",
    "L": "f06060606266fe00",
    "O": "386cc6c6c66c3800",
}


def gray(rows: list[list[int]]) -> Picture:
    pixels = bytes(value for row in rows for value in row for _ in range(3))
    return Picture(len(rows[0]), len(rows), pixels)


def code(*texts: str, scale: int = 3) -> Picture:
    """Return a picture of QR codes, one above the other."""
    rows: list[list[int]] = []
    for text in texts:
        barcode = zxingcpp.create_barcode(text, zxingcpp.BarcodeFormat.QRCode)
        image: Any = zxingcpp.write_barcode_to_image(barcode, scale=scale)
        lines: Any = memoryview(image).tolist()
        rows += lines
    width = max(len(row) for row in rows)
    return gray([row + [255] * (width - len(row)) for row in rows])


def written(text: str, scale: int = 2) -> Picture:
    """Return a picture of a text at its upper left corner, white on black."""
    rows = []
    for line in range(8):
        bits = "".join(f"{bytes.fromhex(FONT[letter])[line]:08b}" for letter in text)
        rows.append([255 * int(bit) for bit in bits + "0" * 64])
    rows += [[0] * len(rows[0])] * 64
    return gray([[v for v in row for _ in range(scale)] for row in rows for _ in range(scale)])


BLACK = gray([[0] * 64] * 64)


def ppm(picture: Picture) -> bytes:
    return b"P6\n%d %d\n255\n" % (picture.width, picture.height) + picture.rgb


class Monitor:
    """QEMU's monitor: each picture that is asked for is the next one, and then the last for ever."""

    def __init__(self, *pictures: bytes) -> None:
        self.rest = list(pictures)
        self.dumped = threading.Event()
        self.lock = threading.RLock()

    def undisturbed(self) -> threading.RLock:
        return self.lock

    def execute(self, command: str, arguments: dict[str, Any]) -> Any:
        assert command == "screendump"
        if arguments["format"] == "png":
            Path(arguments["filename"]).write_bytes(b"PNG")
        else:
            data = self.rest.pop(0) if len(self.rest) > 1 else self.rest[0]
            Path(arguments["filename"]).write_bytes(data)
        self.dumped.set()
        return {}


def new_display(
    folder: Path, monitor: Monitor, scope: Scope | None = None, *, arch: str = "aarch64"
) -> Display:
    parts = SimpleNamespace(
        name="m",
        spec=SimpleNamespace(arch=arch, display=True),
        scope=scope or Scope("machine m"),
        scale=Scale(0.01),
        qmp=monitor,
        evidence=folder,
        timeline=Timeline(),
    )
    return Display(cast("Parts", parts))


def program(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Let the OCR program be a script."""
    folder = folder / "bin"
    folder.mkdir()
    (folder / "tesseract").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "tesseract").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


# --- pictures -----------------------------------------------------------------------------------


def test_a_picture_is_read_as_qemu_writes_it(tmp_path: Path) -> None:
    picture = grab(cast("Any", Monitor(ppm(BLACK))), tmp_path / "screen.ppm")
    assert picture == BLACK
    assert list(tmp_path.iterdir()) == []


def test_two_threads_do_not_take_each_others_file(tmp_path: Path) -> None:
    monitor = Monitor(ppm(BLACK))
    dump = monitor.execute
    both = threading.Barrier(2)
    met: list[str] = []

    def execute(command: str, arguments: dict[str, Any]) -> Any:
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(0.2)
            met.append(command)
        return dump(command, arguments)

    monitor.execute = execute  # type: ignore[method-assign]
    pictures: list[Picture | None] = []

    def take() -> None:
        pictures.append(grab(cast("Any", monitor), tmp_path / "screen.ppm"))

    threads = [threading.Thread(target=take, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert met == []
    assert pictures == [BLACK, BLACK]


@pytest.mark.parametrize(
    "size",
    [b"4097 4096", b"999999 999999", b"16385 9", b"9 16385", b"0 5", b"5 0"],
    ids=["large", "huge", "wide", "high", "w0", "h0"],
)
def test_a_picture_that_is_too_large_is_not_read(size: bytes, tmp_path: Path) -> None:
    path = tmp_path / "screen.ppm"
    path.write_bytes(b"P6\n" + size + b"\n255\n")
    assert Picture.from_ppm(path) is None


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"P5\n2 2\n255\n" + bytes(12), id="gray"),
        pytest.param(b"P6\n2 2\n65535\n" + bytes(24), id="16 bits"),
        pytest.param(b"P6\n-2 2\n255\n" + bytes(12), id="negative"),
        pytest.param(b"P6\n" + b"1" * 5000 + b" 2\n255\n", id="long number"),
        pytest.param(b"P6\n2 2\n255\n" + bytes(11), id="cut off"),
    ],
)
def test_data_without_a_picture_is_an_error(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "screen.ppm"
    path.write_bytes(data)
    with pytest.raises(HostError, match="the picture of the screen"):
        Picture.from_ppm(path)
    with pytest.raises(HostError, match="could not be read"):
        Picture.from_ppm(tmp_path / "none")
    with pytest.raises(HostError, match="the picture of the screen"):
        grab(cast("Any", Monitor(data)), tmp_path / "scratch")
    assert not (tmp_path / "scratch").exists()


# --- QR codes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["PAIR 4711", "Grüße, 世界", "a\x1b[31m\nb", "x" * 1000])
def test_the_text_of_a_code_is_what_was_encoded(text: str) -> None:
    assert code(text).codes() == (text,)


def test_noise_and_large_pictures_have_no_codes() -> None:
    noise = random.Random(1).randbytes(300 * 300 * 3)
    assert Picture(300, 300, noise).codes() == ()
    side = int(MOST_PIXELS**0.5)
    assert Picture(side, side, bytes(MOST_PIXELS * 3)).codes() == ()
    for width, height in ((MOST_SIDE, 16), (16, MOST_SIDE), (1, 1)):
        assert Picture(width, height, bytes(width * height * 3)).codes() == ()


def test_a_screen_full_of_codes_gives_the_first_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_module, "MOST_CODES", 2)
    assert len(code("a", "b", "c").codes()) == 2


def test_a_wait_for_a_code_returns_the_one_that_matches(tmp_path: Path) -> None:
    monitor = Monitor(ppm(BLACK), ppm(code("one")), ppm(code("one", "PAIR 4711")))
    display = new_display(tmp_path, monitor)
    assert display.wait_for_qr() == "one"
    assert display.wait_for_qr(re.compile(r"\d+$"), UNSCALED.after(60)) == "PAIR 4711"
    assert display.wait_for_qr("PAIR") == "PAIR 4711"


def test_a_wait_for_a_code_that_ends_says_which_were_there(tmp_path: Path) -> None:
    display = new_display(tmp_path, Monitor(ppm(code("\x1b]0;x\x07", "y" * 500))))
    with pytest.raises(WaitTimeoutError, match=r"a QR code of 'z\.' on the display of m") as caught:
        display.wait_for_qr(re.compile("z."), UNSCALED.after(0))
    assert Path(caught.value.evidence).read_bytes() == b"PNG"
    (note,) = caught.value.__notes__
    assert "\\x1b]0;x\\x07" in note
    assert "\x1b" not in note
    assert "y" * 390 + "y" * 9 + " ..." in note
    with pytest.raises(WaitTimeoutError, match="a QR code on the display of m") as caught:
        new_display(tmp_path, Monitor(ppm(BLACK))).wait_for_qr(None, UNSCALED.after(0))
    assert caught.value.__notes__ == ["QR codes on the screen:\nnone"]


def test_a_picture_that_has_not_changed_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Picture] = []
    codes = Picture.codes

    def record(picture: Picture) -> tuple[str, ...]:
        read.append(picture)
        return codes(picture)

    monkeypatch.setattr(Picture, "codes", record)
    monitor = Monitor(ppm(BLACK), ppm(BLACK), ppm(BLACK), ppm(code("one")))
    assert new_display(tmp_path, monitor).wait_for_qr() == "one"
    assert read == [BLACK, code("one")]


def test_a_screen_that_is_too_large_is_waited_out(tmp_path: Path) -> None:
    huge = b"P6\n99999 99999\n255\n"
    assert new_display(tmp_path, Monitor(huge, ppm(code("one")))).wait_for_qr() == "one"
    with pytest.raises(WaitTimeoutError) as caught:
        new_display(tmp_path, Monitor(huge)).wait_for_qr(None, UNSCALED.after(0))
    assert str(MOST_PIXELS) in caught.value.hint


# --- text ---------------------------------------------------------------------------------------


@needs("tesseract")
def test_ocr_reads_a_text() -> None:
    assert written("HELLO").text(NEVER, Scope("m")) == "HELLO"
    assert BLACK.text(NEVER, Scope("m")) == ""


@needs("tesseract")
@pytest.mark.parametrize("size", [(1, 1), (MOST_SIDE, 4), (4, MOST_SIDE)])
def test_ocr_takes_pictures_of_odd_sizes(size: tuple[int, int]) -> None:
    width, height = size
    assert Picture(width, height, bytes(width * height * 3)).text(NEVER, Scope("m")) == ""


@needs("tesseract")
def test_a_picture_without_text_is_waited_out(tmp_path: Path) -> None:
    display = new_display(tmp_path, Monitor(ppm(gray([[0]])), ppm(written("HELLO"))))
    assert display.wait_for_text("HELLO", UNSCALED.after(120)).text == "HELLO"


def test_a_host_without_the_program_says_which_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    # Also in a text mode, which needs none: a screen may pass through another mode.
    monkeypatch.setattr(display_module, "read_text", lambda *_: VgaText(("x",), (1, 1)))
    display = new_display(tmp_path, Monitor(ppm(BLACK)), arch="x86_64")
    with pytest.raises(HostError, match="tesseract is not installed") as caught:
        display.wait_for_text("x")
    assert caught.value.hint == "install the package tesseract-ocr"


def test_what_the_program_writes_is_limited_and_is_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, monkeypatch, r"printf 'a\033[31mb\n\n \n\001\377c\n'")
    assert BLACK.text(NEVER, Scope("m")) == "ab\n�c"
    (tmp_path / "bin/tesseract").write_text("#!/bin/sh\nexec yes\n")
    text = BLACK.text(NEVER, Scope("m"))
    assert text is not None
    assert len(text) in (MOST_TEXT - 1, MOST_TEXT)


def test_the_program_gets_the_picture_and_its_failure_is_the_hosts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, monkeypatch, "head -c 8 | grep P6 && echo $* $OMP_THREAD_LIMIT")
    assert BLACK.text(NEVER, Scope("m")) == "P6\nstdin stdout -l eng --psm 11 1"
    (tmp_path / "bin/tesseract").write_text("#!/bin/sh\necho no eng.traineddata >&2; exit 1\n")
    with pytest.raises(HostError, match="ended with status 1") as caught:
        BLACK.text(NEVER, Scope("m"))
    assert caught.value.evidence == "no eng.traineddata"


def test_a_match_has_to_be_there_at_two_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The script tells the pictures apart by their width, and counts how often it was asked.
    program(tmp_path, monkeypatch, f"sed -n 2p | cut -d ' ' -f 1 | tee -a {tmp_path}/asked")
    drawn = [gray([[0] * width]) for width in (1, 12, 128, 128, 128)]
    shown = [str(width + 32) for width in (1, 12, 128)]  # with the margin
    display = new_display(tmp_path, Monitor(*map(ppm, drawn)))
    assert display.wait_for_text(re.compile(r"\d+"), UNSCALED.after(60)).text == shown[-1]
    assert (tmp_path / "asked").read_text().split() == shown


def test_a_text_mode_is_read_without_ocr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, monkeypatch, "exit 1")
    monkeypatch.setattr(display_module, "read_text", lambda *_: VgaText(("O0",), (1, 1)))
    display = new_display(tmp_path, Monitor(b""), arch="x86_64")
    assert display.wait_for_text("O0").text == "O0"


def test_a_wait_for_text_that_ends_has_the_text_and_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, monkeypatch, "echo grub")
    display = new_display(tmp_path, Monitor(ppm(BLACK)))
    with pytest.raises(WaitTimeoutError, match="'login' on the display of m") as caught:
        display.wait_for_text("login", UNSCALED.after(1))
    assert Path(caught.value.evidence).read_bytes() == b"PNG"
    assert caught.value.__notes__ == ["on the screen:\ngrub"]
    with pytest.raises(WaitTimeoutError) as caught:
        new_display(tmp_path, Monitor(b"P6\n9999 9999\n255\n")).wait_for_text(
            "login", UNSCALED.after(0)
        )
    assert str(MOST_PIXELS) in caught.value.hint


def test_ocr_ends_with_the_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, monkeypatch, "exec sleep 1000")
    with pytest.raises(WaitTimeoutError, match="'login'") as caught:
        new_display(tmp_path, Monitor(ppm(BLACK))).wait_for_text("login", UNSCALED.after(0.2))
    assert "OCR did not end in time" in caught.value.hint


@pytest.mark.parametrize("word", ["wait_for_text", "wait_for_qr"])
def test_a_failure_of_the_scope_ends_the_waits(
    word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, monkeypatch, "exec sleep 1000")
    scope = Scope("machine m")
    monitor = Monitor(ppm(BLACK))
    display = new_display(tmp_path, monitor, scope)
    raised: list[GuestStoppedError] = []

    def wait() -> None:
        try:
            getattr(display, word)("x", NEVER)
        except GuestStoppedError as error:
            raised.append(error)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    assert monitor.dumped.wait(20)
    scope.fail(GuestStoppedError("stopped"))
    thread.join(20)
    assert [str(error) for error in raised] == ["stopped"]


def test_a_machine_without_a_display_has_no_words_for_it(tmp_path: Path) -> None:
    parts = SimpleNamespace(name="m", spec=SimpleNamespace(arch="x86_64", display=False))
    with pytest.raises(UsageError, match="no display"):
        Display(cast("Parts", parts)).wait_for_qr()
