"""Run the test of a bundle again, and say whether it fails in the same way.

The test runs on the same inputs: the image, its version and architecture, the options and seeds of the
run that failed. Its file is taken from the working folder, which is the project's; a test of Harness'
own suites runs from any folder. An image that is made from other files here than there is refused,
unless --anyway says to go on.

Two failures are the same if their signatures are: the test, the step that failed, the verdict, and the
first line of the failure without numbers and paths. The new run has evidence and a bundle of its own.

Exit status:
  0   the test failed in the same way
  1   it passed, or failed in another way
  2   the bundle is damaged, or its test or image is not here
  130 the run was interrupted
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Final

from harness.artifacts import digest_inputs
from harness.cli.acceptance import command, run
from harness.cli.options import say
from harness.errors import BundleError, HarnessError
from harness.evidence.bundle import FILE, Bundle, Manifest
from harness.lab import Lab

_INTERRUPTED: Final = 2
"""pytest's exit status (``pytest.ExitCode.INTERRUPTED``)."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the file of a failed test")
    parser.add_argument(
        "--anyway", action="store_true", help="go on if the image or the test is another one here"
    )
    parser.add_argument(
        "--evidence",
        default=".harness/runs",
        metavar="DIR",
        help="the folder that gets the evidence of the new run (default: %(default)s)",
    )


def main(options: argparse.Namespace) -> int:
    """Run the test and compare."""
    from harness import paths

    with Bundle(options.bundle) as bundle:
        manifest = bundle.manifest
    test = manifest.test
    for difference in differences(manifest, paths.bundled("suites").parent, Path.cwd()):
        if not options.anyway:
            raise BundleError(difference, hint="--anyway runs the test all the same")
        say(f"warning: {difference}")
    say(f"{test.id} failed at {test.time}: {test.verdict}: {test.reason}")
    home = paths.bundled("suites").parent
    # Without a second try: the first one is compared.
    further = ["--no-retry", "--bundle=auto", f"--evidence={options.evidence}"]
    words = command([*test.arguments, *further, "-p", "no:cacheprovider"], home, Path.cwd())
    status = run(words)
    return verdict(manifest, Path(options.evidence), status)


def verdict(manifest: Manifest, evidence: Path, status: int) -> int:
    """Say how a repetition ended, and return the exit status.

    Args:
        manifest: The manifest of the bundle.
        evidence: The folder with the evidence of runs.
        status: The exit status of pytest.
    """
    test = manifest.test
    if status == 0:
        say("it passed: the failure does not happen each time, or the host was its cause")
        return 1
    if status == _INTERRUPTED:
        say("the repetition was interrupted: it says nothing about the failure")
        return 130
    again = repeated(evidence / "latest")
    if again is None:
        raise BundleError(
            f"the test did not run (pytest ended with status {status})",
            hint=f"run this in the folder of the project that has {test.file}",
        )
    if again.test.signature == test.signature:
        say(f"it failed in the same way: {again.test.verdict}: {again.test.reason}")
        return 0
    say(f"it failed in another way: {again.test.verdict}: {again.test.reason}")
    return 1


def repeated(run: Path) -> Manifest | None:
    """Return the manifest of the bundle of a run of one test; ``None`` if it has none."""
    try:
        results = json.loads((run / "results.json").read_bytes())
        (test,) = results["tests"]
        (path,) = (run / test["evidence"]).glob(f"*{FILE}")
        with Bundle(path) as bundle:
            return bundle.manifest
    except (OSError, ValueError, KeyError, HarnessError):
        return None


def differences(manifest: Manifest, home: Path, folder: Path) -> list[str]:
    """Return how the inputs here differ from those of the failure, a sentence each.

    Args:
        manifest: The manifest.
        home: The folder that has Harness' own suites.
        folder: The working folder.
    """
    test = manifest.test
    sentences = []
    path = next((each / test.file for each in (folder, home) if (each / test.file).is_file()), None)
    if path is None:
        raise BundleError(
            f"{test.file} is neither in {folder} nor one of Harness' suites",
            hint="run this in the folder of the test's project",
        )
    if test.sha256 and hashlib.sha256(path.read_bytes()).hexdigest() != test.sha256:
        sentences.append(f"{path} is not the file that failed: it has changed since then")
    if manifest.image:
        folders = [
            Path(word.partition("=")[2]) for word in test.arguments if word.startswith("--images=")
        ]
        own = [each for each in (Path("images"), *folders) if each.is_dir()]
        with Lab(images=own or None) as lab:
            image = lab.catalog.resolve(manifest.image, test.arch or None)
            if digest_inputs(image) != manifest.inputs:
                sentences.append(
                    f"image {manifest.image} is made from other files here than at the failure"
                )
    return sentences
