"""The cloud images of distributions: they have no login until cloud-init has read a seed.

``live`` is the installed system. The profile adds a disk with a NoCloud seed (cloud-init's
documentation, data source NoCloud), unless the test brings one of its own. The seed is the same for
each machine of an image. It lets root log in on the console with the password that ``login`` in
image.yaml has, and over SSH with the run's key, which arrives as the systemd credential
``ssh.authorized_keys.root``. systemd 252 and later take that by themselves
(``systemd.system-credentials(7)``); the seed's script does it where there is no systemd, from the
places that :mod:`harness.credentials` describes.

The script is a ``bootcmd``, which cloud-init runs at each boot before sshd and before the login prompt
(cloud-init's documentation, "Boot stages").
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from harness import paths
from harness.catalog import Selection
from harness.deadline import Deadline
from harness.errors import StoreError, UsageError
from harness.profiles.abilities import Versioned
from harness.profiles.base import Profile
from harness.seed import seed_disk, write_nocloud
from harness.spec import Disk, MachineSpec

SEED: Final = "seed"
"""The name of the disk with the seed, which is that of a test's own seed, too."""

_SCRIPT: Final = r"""
umask 077
echo {login} | chpasswd
name=ssh.authorized_keys.root
modprobe -a dmi-sysfs qemu_fw_cfg 2>/dev/null
mkdir -p /root/.ssh
chmod 700 /root/.ssh
{{
    for file in /root/.ssh/authorized_keys "/run/credentials/@system/$name" \
        "/sys/firmware/qemu_fw_cfg/by_name/opt/io.systemd.credentials/$name/raw"; do
        if [ -r "$file" ]; then cat "$file"; echo; fi
    done
    for entry in /sys/firmware/dmi/entries/11-*/raw; do
        [ -r "$entry" ] || continue
        tail -c +6 "$entry" | tr '\0' '\n' | while read -r line; do
            case "$line" in
            "io.systemd.credential:$name="*) echo "${{line#*=}}" ;;
            "io.systemd.credential.binary:$name="*) echo "${{line#*=}}" | base64 -d; echo ;;
            esac
        done
    done
}} | sed '/^$/d' | sort -u >/root/.ssh/authorized_keys.new
mv /root/.ssh/authorized_keys.new /root/.ssh/authorized_keys
if command -v restorecon >/dev/null; then restorecon -R /root/.ssh; fi
"""


class Cloud(Profile):
    """The words of a cloud image with cloud-init and systemd."""

    name = "cloud"

    @classmethod
    def spec(
        cls,
        selection: Selection,
        files: Mapping[str, Path],
        *,
        disks: Sequence[Disk] = (),
        **further: Any,
    ) -> MachineSpec:
        """Return the spec of a machine that has a seed: the test's own, or else the profile's.

        Args:
            selection: The image.
            files: The image's artifacts by name.
            disks: Further disks.
            further: The other arguments of :meth:`Profile.spec <harness.profiles.base.Profile.spec>`.

        Raises:
            UsageError: The image's login is not root with a password.
            StoreError: The seed cannot be written into the cache.
        """
        if all(disk.name != SEED for disk in disks):
            disks = (*disks, seed_disk(_written(cls.seed_files(selection)), SEED))
        return super().spec(selection, files, disks=disks, **further)

    @classmethod
    def seed_files(cls, selection: Selection) -> dict[str, str]:
        """Return the files of the NoCloud seed that lets root log in.

        Raises:
            UsageError: The image's login is not root with a password.
        """
        account = selection.login.account
        if account.user != "root" or not account.password:
            raise UsageError(
                f"profile {cls.name} sets a password for root, and `login` of {selection.path} is"
                " not root with a password",
                hint="login: {user: root, password: WORD}",
            )
        script = _SCRIPT.format(login=shlex.quote(f"root:{account.password}"))
        # JSON is YAML. cloud-init wants its first line as it is.
        settings = {"disable_root": False, "bootcmd": [["sh", "-c", script.strip()]]}
        meta = {"instance-id": f"harness-{selection.name}", "local-hostname": selection.name}
        return {
            "user-data": f"#cloud-config\n{json.dumps(settings, indent=1)}\n",
            "meta-data": f"{json.dumps(meta)}\n",
        }

    def version(self) -> str:
        """Return ``VERSION_ID`` of ``os-release(5)``; a rolling distribution has none."""
        output = self.machine.succeed("sed -n 's/^VERSION_ID=//p' /etc/os-release")
        return output.strip().strip("\"'")

    def wait_running(self, deadline: Deadline | float | None = None) -> None:
        """Wait until cloud-init is done, the system has started and no service has failed.

        Args:
            deadline: 60 s on a good host by default.

        Raises:
            CommandError: cloud-init reports an error, or a service has failed.
        """
        limit = self.machine.scale.limit(deadline, 60)
        self.wait_cloud_init(limit)
        super().wait_running(limit)

    def wait_cloud_init(self, deadline: Deadline | float | None = None) -> None:
        """Wait until cloud-init is done.

        Args:
            deadline: 60 s on a good host by default.

        Raises:
            CommandError: cloud-init reports an error.
        """
        # Status 2 is "done, with recoverable errors", such as a key that a later version renames.
        self.machine.succeed(
            self.as_root("cloud-init status --wait >/dev/null || test $? = 2"),
            deadline=self.machine.scale.limit(deadline, 60),
        )


def _written(files: Mapping[str, str]) -> Path:
    """Return the seed with these files, in the cache; it is written at the first call.

    Its name is a digest of its content, so that equal seeds are one file however many machines, runs
    and saved states use it.
    """
    digest = hashlib.sha256(json.dumps(sorted(files.items())).encode()).hexdigest()[:20]
    path = paths.cache_dir() / "seeds" / f"{digest}.iso"
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{digest}.", suffix=".new", dir=path.parent)
        os.close(handle)
        try:
            written = write_nocloud(Path(name), files)
            written.chmod(0o444)
            written.rename(path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                Path(name).unlink()
    except OSError as error:
        raise StoreError(f"the seed {path} cannot be written: {error}") from error
    return path


if TYPE_CHECKING:
    _: type[Versioned] = Cloud
