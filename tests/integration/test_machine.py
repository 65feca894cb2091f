"""The words of a machine, on a booted micro guest."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from harness import Lab
from harness import arch as arches
from harness.deadline import UNSCALED
from harness.errors import (
    CommandError,
    GuestStoppedError,
    PanicError,
    SshError,
    UnknownNameError,
    UsageError,
    WaitTimeoutError,
)
from harness.machine import Machine
from harness.spec import MIB, ConsoleDevice, Disk, Firmware, FirmwareKind, MachineSpec, Nic


def test_console_and_ssh_reach_the_same_guest(micro: Machine) -> None:
    result = micro.console.run("echo out; echo err >&2; exit 3")
    assert (result.stdout, result.status) == ("out\nerr\n", 3)
    assert micro.succeed("uname -m").strip() == micro.spec.arch
    assert micro.boot_id == micro.console.run("cat /proc/sys/kernel/random/boot_id").stdout.strip()


def test_a_command_with_the_wrong_status_shows_its_output(micro: Machine) -> None:
    with pytest.raises(CommandError) as caught:
        micro.succeed("echo some words; echo complaint >&2; exit 5")
    assert "status 5 on micro" in caught.value.what
    assert "some words" in caught.value.evidence
    assert "complaint" in caught.value.evidence
    assert micro.fail("echo as wanted; false") == "as wanted\n"
    with pytest.raises(CommandError, match="succeeded on micro and must not"):
        micro.fail("true")


def test_two_machines_in_two_threads_show_their_own_stderr(lab: Lab) -> None:
    machines = [lab.boot("micro", name=name).wait_ready() for name in ("left", "right")]
    begin = threading.Barrier(len(machines))
    evidence: dict[str, list[str]] = {machine.name: [] for machine in machines}

    def run(machine: Machine) -> None:
        for _ in range(10):
            begin.wait(60)
            with pytest.raises(CommandError) as caught:
                machine.succeed(f"echo complaint of {machine.name} >&2; exit 1")
            evidence[machine.name].append(caught.value.evidence)

    threads = [threading.Thread(target=run, args=[machine]) for machine in machines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert evidence == {name: [f"complaint of {name}"] * 10 for name in ("left", "right")}


def test_both_ways_into_the_guest_return_the_same_kind_of_result(micro: Machine) -> None:
    over_ssh = micro.execute("echo out; echo err >&2; exit 3")
    assert (over_ssh.stdout, over_ssh.stderr, over_ssh.status) == ("out\n", "err\n", 3)
    on_console = micro.console.run("echo out; echo err >&2; exit 3")
    assert (on_console.stdout, on_console.stderr, on_console.status) == ("out\nerr\n", "", 3)
    for result in (over_ssh, on_console):
        assert result.seconds > 0
        assert not result.ok
        with pytest.raises(CommandError, match="status 3 on micro") as caught:
            result.check()
        assert caught.value.evidence == "out\nerr"


def test_waiting_for_a_condition_and_a_port(micro: Machine) -> None:
    micro.succeed(
        "(sleep 1; touch /tmp/there; nc -l -p 7777 >/dev/null 2>&1 </dev/null) >/dev/null 2>&1 &"
    )
    micro.wait_until_succeeds("test -e /tmp/there", 30)
    micro.wait_for_port(7777, 30)
    with pytest.raises(WaitTimeoutError, match="'test -e /tmp/never' to succeed on micro"):
        micro.wait_until_succeeds("test -e /tmp/never", UNSCALED.after(1))
    assert micro.succeed("echo alive") == "alive\n"


def test_a_command_ends_before_what_it_started(micro: Machine) -> None:
    # Neither dropbear nor the console waits for what holds the output open; nor does OpenSSH.
    for run in (micro.ssh.run, micro.console.run):
        result = run("sleep 100000 & echo started; exit 3", UNSCALED.after(3600))
        assert (result.stdout, result.status) == ("started\n", 3)
    micro.succeed("killall sleep")


def test_a_file_is_copied_in_and_out(micro: Machine) -> None:
    content = bytes(range(256)) * 400
    micro.ssh.put(content, "/tmp/file", mode=0o600)
    assert micro.ssh.get("/tmp/file") == content


def test_a_file_is_copied_without_an_sftp_server(lab: Lab) -> None:
    machine = lab.boot("micro").wait_ready()
    machine.succeed("rm /usr/lib/sftp-server /usr/lib/openssh/sftp-server")
    content = bytes(range(256)) * 400
    machine.ssh.put(content, "/tmp/a file", mode=0o600)
    assert machine.ssh.get("/tmp/a file") == content
    assert machine.succeed("stat -c %a '/tmp/a file'") == "600\n"
    with pytest.raises(SshError, match="status 1"):
        machine.ssh.get("/tmp/none")


def test_credentials_that_are_too_large_for_smbios_arrive(lab: Lab) -> None:
    large = "large " * 35_000
    machine = lab.boot("micro", credentials={"large": large, "small": "x"}).wait_ready()
    folder = "/sys/firmware/qemu_fw_cfg/by_name/opt/io.systemd.credentials"
    assert machine.succeed(f"cat {folder}/large/raw") == large
    assert machine.succeed(f"ls {folder}") == "large\n"
    # By hand, on disks of its own: the script writes the file itself.
    start = ["sh", str(machine.evidence / "qemu.sh"), "--fresh"]
    with subprocess.Popen(start, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as by_hand:
        assert by_hand.stdout is not None
        shown = b""
        while b"login:" not in shown:
            more = os.read(by_hand.stdout.fileno(), 4096)
            assert more, shown
            shown += more
        by_hand.kill()


def test_a_kernel_that_is_booted_directly_has_its_live_disk(lab: Lab, tmp_path: Path) -> None:
    base = tmp_path / "live.raw"
    base.write_bytes(b"live".ljust(MIB, b"\0"))
    machine = lab.boot("micro", disks=[Disk("live", base=base, boot_index=0)]).wait_ready()
    assert machine.succeed("head -c 4 /dev/vda") == "live"


def real_mode_kernel(text: bytes) -> bytes:
    """Return a kernel that prints a text by the BIOS and halts (Documentation/arch/x86/boot.rst)."""
    code = (
        b"\x0e\x1f\xfc\xbe\x60\x00"  # push cs; pop ds; cld; mov si, 0x60
        b"\xac\x84\xc0\x74\x09"  # lodsb; test al, al; jz to the end
        b"\xb4\x0e\xbb\x07\x00\xcd\x10\xeb\xf2"  # mov ah, 0xe; mov bx, 7; int 0x10; jmp to lodsb
        # sti; hlt; jmp to hlt. SeaBIOS sends the last character with the next interrupt (src/sercon.c).
        b"\xfb\xf4\xeb\xfd"
    )
    kernel = bytearray(2048)
    kernel[0x1F1] = 1  # sectors of setup code
    kernel[0x1FE:0x200] = b"\x55\xaa"
    kernel[0x200:0x208] = b"\xeb\x3eHdrS\x00\x02"  # jmp to 0x240; version 2.0
    kernel[0x240 : 0x240 + len(code)] = code
    kernel[0x260 : 0x260 + len(text)] = text
    return bytes(kernel)


def test_text_of_a_kernel_in_real_mode_is_on_the_console(lab: Lab, tmp_path: Path) -> None:
    path = tmp_path / "text.lkrn"
    path.write_bytes(real_mode_kernel(b"words of real mode"))
    machine = lab.launch(
        MachineSpec("text", "x86_64", Firmware(FirmwareKind.KERNEL, path), nics=()), "micro"
    )
    machine.console.expect("words of real mode", 60)


def test_an_error_names_the_unknown_disk_or_port(micro: Machine) -> None:
    with pytest.raises(UnknownNameError, match="unknown disk 'root'"):
        micro.disk("root")
    with pytest.raises(UsageError, match="port 80 of machine micro is not forwarded"):
        micro.port(80)
    with pytest.raises(UsageError, match="no display"):
        micro.screenshot()


def test_a_reboot_changes_the_boot_id(lab: Lab) -> None:
    machine = lab.boot("micro").wait_ready()
    before = machine.boot_id
    machine.reboot()
    assert machine.boot_id != before
    machine.os.login()
    machine.use_console_shell = True
    between = machine.boot_id
    machine.reboot()
    assert machine.boot_id not in (before, between)


def test_the_power_button_and_a_power_cut(lab: Lab) -> None:
    machine = lab.boot("micro").wait_ready()
    machine.shutdown()
    assert not machine.running
    assert [event.data["guest"] for event in machine.qmp.seen(["SHUTDOWN"])] == [True]
    other = lab.boot("micro")
    other.power_cut()
    assert not other.running


def test_a_machine_can_be_stopped_from_any_thread_and_again(lab: Lab) -> None:
    machine = lab.boot("micro")
    threads = [threading.Thread(target=machine.stop) for _ in range(4)]
    for thread in threads:
        thread.start()
    machine.stop()
    # Each call returns when the machine has ended, not only the first.
    assert not Path(f"/proc/{machine.pid}").exists()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert not machine.running
    assert "was stopped" in str(machine.failure)
    with pytest.raises(GuestStoppedError, match="machine micro was stopped"):
        machine.qmp.wait(["NEVER"], UNSCALED.after(60))


def test_a_fork_runs_and_ends_with_the_owner_of_its_machine(lab: Lab) -> None:
    machine = lab.boot("micro", saveable=True)
    machine.os.login()
    fork = machine.fork()
    assert fork.running
    assert fork.name == "micro-fork1"
    assert fork.scope.parent is machine.scope.parent is lab.scope
    assert fork.os.account == machine.os.account
    assert fork.console.run("echo on").stdout == "on\n"
    lab._stack.close()
    assert not Path(f"/proc/{fork.pid}").exists()
    assert not Path(f"/proc/{machine.pid}").exists()
    assert lab.scope._children == []


def test_a_machine_without_ssh_says_so(lab: Lab) -> None:
    machine = lab.boot("micro", nics=())
    with pytest.raises(UsageError, match="machine micro has no SSH: no interface forwards port 22"):
        _ = machine.ssh
    assert machine.use_console_shell
    with pytest.raises(UsageError, match="machine micro has no TPM"):
        _ = machine.tpm_state


def test_pause_and_resume(lab: Lab) -> None:
    machine = lab.boot("micro")
    machine.os.login()
    machine.pause()
    with pytest.raises(WaitTimeoutError) as caught:
        machine.console.run("echo paused", UNSCALED.after(1))
    assert caught.value.silent is not None
    machine.resume()
    assert machine.console.run("echo resumed").stdout == "resumed\n"


def test_disks_are_found_by_serial_and_bases_stay_untouched(lab: Lab, tmp_path: Path) -> None:
    base = tmp_path / "base.raw"
    base.write_bytes(b"base" * 1024 + bytes(MIB - 4096))
    before = base.read_bytes()
    machine = lab.boot(
        "micro",
        disks=[
            Disk("data", base=base, serial="DATA-1"),
            Disk("scratch", size=8 * MIB, serial="SCRATCH-1"),
            Disk("locked", base=base, serial="LOCKED-1", readonly=True),
        ],
    ).wait_ready()
    by_serial = {}
    for name in machine.succeed("ls /sys/block").split():
        if name.startswith("vd"):
            by_serial[machine.succeed(f"cat /sys/block/{name}/serial").strip()] = name
    assert set(by_serial) == {"DATA-1", "SCRATCH-1", "LOCKED-1"}
    assert machine.succeed(f"head -c 4 /dev/{by_serial['DATA-1']}") == "base"
    machine.succeed(f"echo changed | dd of=/dev/{by_serial['DATA-1']} conv=fsync")
    machine.fail(f"echo changed | dd of=/dev/{by_serial['LOCKED-1']} conv=fsync")
    sectors = machine.succeed(f"cat /sys/block/{by_serial['SCRATCH-1']}/size")
    assert int(sectors) * 512 == 8 * MIB
    machine.stop()
    assert base.read_bytes() == before


def test_a_nocloud_seed_can_be_read(lab: Lab) -> None:
    machine = lab.boot("micro", seed_files={"user-data": "#cloud-config\n", "meta-data": "x: 1\n"})
    machine.wait_ready().succeed("mkdir -p /mnt && mount -t iso9660 -o ro /dev/vda /mnt")
    assert machine.succeed("cat /mnt/user-data") == "#cloud-config\n"
    assert machine.succeed("cat /mnt/meta-data") == "x: 1\n"


def test_a_guest_reaches_nothing_unless_asked(lab: Lab) -> None:
    reached = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def answer() -> None:
            connection, _ = server.accept()
            reached.append(connection.recv(100))
            connection.close()

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        # 10.0.2.2 is the host, as QEMU's user-mode network shows it to guests.
        knock = f"echo hello | nc -w 5 10.0.2.2 {port}"
        closed = lab.boot("micro", name="closed").wait_ready()
        closed.fail(knock)
        closed.stop()
        assert reached == []
        opened = lab.boot("micro", name="opened", nics=[Nic(outbound=True)]).wait_ready()
        opened.execute(knock)
        thread.join(30)
        assert reached == [b"hello\n"]


def test_a_virtio_console(lab: Lab) -> None:
    machine = lab.boot("micro", console=ConsoleDevice.VIRTIO, cmdline="console=hvc0")
    machine.os.login()
    assert machine.console.run("echo over virtio").stdout == "over virtio\n"


OTHERS = [name for name in arches.ARCHES if name != "x86_64"]
"""The architectures that the tests of this module do not run on: micro's first one is theirs."""


@pytest.mark.parametrize("arch", OTHERS)
def test_the_words_of_a_machine_on_another_architecture(
    lab: Lab, tmp_path: Path, arch: str
) -> None:
    """What depends on the architecture: UART, fw_cfg, virtio, watchers, reset, power button."""
    base = tmp_path / "base.raw"
    base.write_bytes(b"base" * 1024 + bytes(MIB - 4096))
    machine = lab.boot("micro", arch=arch, disks=[Disk("data", base=base, serial="DATA-1")])
    machine.os.login()
    assert machine.console.run("uname -m").stdout == f"{arch}\n"
    # The key that lets SSH in came through fw_cfg.
    assert machine.ssh.run("uname -m").check().stdout == f"{arch}\n"
    content = bytes(range(256)) * 400
    machine.ssh.put(content, "/tmp/file")
    assert machine.ssh.get("/tmp/file") == content
    assert machine.succeed("cat /sys/block/vda/serial; head -c 4 /dev/vda") == "DATA-1base"
    machine.succeed("echo changed | dd of=/dev/vda conv=fsync")
    assert machine.written("data") == [range(65536)]
    before = machine.boot_id
    machine.reboot()
    assert machine.boot_id != before
    assert machine.succeed("head -n 1 /dev/vda") == "changed\n"
    machine.shutdown()
    assert [event.data["guest"] for event in machine.qmp.seen(["SHUTDOWN"])] == [True]


@pytest.mark.parametrize("arch", OTHERS)
def test_a_panic_on_another_architecture_ends_a_wait(lab: Lab, arch: str) -> None:
    machine = lab.boot("micro", arch=arch)
    machine.os.login()
    machine.console.leave()
    machine.console.send_line("echo c > /proc/sysrq-trigger")
    with pytest.raises(PanicError, match="sysrq"):
        machine.console.expect("words that never come", 600)


def test_the_written_bytes_of_a_disk_are_known(lab: Lab, tmp_path: Path) -> None:
    base = tmp_path / "base.raw"
    base.write_bytes(b"x" * 8 * MIB)
    disks = [Disk("blank", size=8 * MIB), Disk("full", base=base)]
    machine = lab.boot("micro", disks=disks, nics=())
    machine.os.login()
    assert machine.written("blank") == machine.written("full") == []
    machine.succeed("dd if=/dev/urandom of=/dev/vda bs=64k count=1 seek=16 conv=fsync 2>/dev/null")
    machine.succeed("dd if=/dev/zero of=/dev/vdb bs=64k count=2 seek=32 conv=fsync 2>/dev/null")
    assert machine.written("blank") == [range(MIB, MIB + 65536)]
    assert machine.written("full") == [range(2 * MIB, 2 * MIB + 2 * 65536)]
    with pytest.raises(UnknownNameError):
        machine.written("other")


def test_writes_to_a_disk_are_counted(lab: Lab) -> None:
    machine = lab.boot("micro", disks=[Disk("data", size=8 * MIB)]).wait_ready()
    assert machine.writes("data") == 0
    machine.succeed("head -c 512 /dev/vda >/dev/null")
    assert machine.writes("data") == 0
    machine.succeed("echo x | dd of=/dev/vda conv=fsync")
    assert machine.writes("data") == 1
