"""Judge an image: run the acceptance suites with pytest.

All arguments go to pytest: harness acceptance suites/install --image skiff -k serial. Without a path,
all suites of Harness run. A path such as suites/install names one of them from any folder, unless the
working folder has such a path itself. Paths in options are relative to the working folder.

--arch all judges the image on each architecture: the tests' names then end in it, and the summary has a
table of suites by architecture. An architecture that the image lacks is skipped; one that is named
(--arch x86_64,aarch64) has to be there.

--plan FILE --job ID runs a job of a plan that harness plan made: its tests, with its image,
architecture and tier. Give no path, and none of --image, --arch and --tier. --attempt 2 says in the
results that it is the second attempt.

The evidence of the run and its results.json are below .harness/runs (see --evidence).

Exit status:
  0   all tests passed
  1   a test failed because of the image (verdict product)
  2   the run was interrupted, by the user, by SIGTERM or by a closed terminal
  3   pytest failed internally
  4   wrong usage: an unknown option, image or path
  5   no test was selected
  10  a test failed because of itself (verdict test)
  11  a test failed because of the host or of Harness (verdict infra)
  12  a deadline passed (verdict timeout)
Where failed tests have several verdicts, the status is that of the first of product, test, timeout,
infra. 0 to 5 are pytest's own. 11 is also that of a pytest which was killed, as the kernel does where
memory runs out. A test that failed by infra and passed at its second try (verdict flaky) has passed;
the summary names it.
"""

from __future__ import annotations

import argparse
import itertools
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from harness import paths
from harness.errors import UsageError, Verdict
from harness.evidence.results import STATUS
from harness.signals import passing_on

_FOLDERS: Final = ("--evidence", "--images", "--recording")
"""Options of Harness that name a folder."""

_PASSED_ON: Final = (signal.SIGTERM, signal.SIGHUP)
"""Signals for this process alone; a terminal's Ctrl-C reaches pytest as well."""

_USAGE: Final = 4
"""pytest's exit status for wrong usage (``ExitCode.USAGE_ERROR``)."""

_VALUED: Final = (
    *("--image", "--arch", "--accel", "--timeout-scale", "--state-budget", "--services", "--tier"),
    *(
        "--cut",
        "--cuts",
        "--cut-seed",
        "--bundle",
        "--bundle-limit",
        "--bundle-budget",
        "--plan",
        "--job",
        "--attempt",
    ),
    *_FOLDERS,
    *(
        "-k",
        "-m",
        "-n",
        "-o",
        "-p",
        "-c",
        "-W",
        "--ignore",
        "--deselect",
        "--junit-xml",
        "--junitxml",
    ),
)
"""Options of Harness and of pytest whose value is the next argument and may be the name of a path."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    # The command line does not parse these: pytest does.
    parser.add_argument("arguments", nargs="*", metavar="PYTEST-ARGUMENT", help="see pytest --help")


def joined(arguments: Sequence[str]) -> list[str]:
    """Return the arguments; each of Harness' options that names a folder is joined to it with ``=``.

    pytest looks for its configuration beside all paths among its arguments before it knows which of them
    are the values of options.
    """
    words: list[str] = []
    for word in arguments:
        if words and words[-1] in _FOLDERS:
            words[-1] += f"={word}"
        else:
            words.append(word)
    return words


def planned(arguments: Sequence[str], folder: Path) -> list[str]:
    """Return the arguments; those that name a job of a plan also choose its image, tier and files.

    Args:
        arguments: The user's arguments.
        folder: The working folder.

    Raises:
        UsageError: The plan cannot be read, or has no such job.
    """
    words = [word for each in arguments for word in _parts(each)]
    values = dict(itertools.pairwise(words))
    if "--plan" not in values or "--job" not in values:
        return list(arguments)
    from harness.gate import plan

    job = plan.read(folder / values["--plan"]).job(values["--job"])
    files = dict.fromkeys(test.partition("::")[0] for test in job.tests)
    return [*("--image", job.image, "--arch", job.arch, "--tier", job.tier), *arguments, *files]


def _parts(word: str) -> list[str]:
    """Return ``--plan=FILE`` as two words, as pytest reads it."""
    name, equals, value = word.partition("=")
    return [name, value] if equals and name in ("--plan", "--job") else [word]


def command(arguments: Sequence[str], home: Path, folder: Path) -> list[str]:
    """Return the command that runs pytest.

    The root folder is that of Harness' suites, unless an argument names a path of the working folder.

    Args:
        arguments: The user's arguments. pytest decides which of them are paths; the plugin's option
            ``--acceptance`` supplies Harness' suites.
        home: The folder that contains Harness' own ``suites``.
        folder: The working folder.
    """
    words = [sys.executable, "-m", "pytest", "-p", "harness.pytest_plugin", "--acceptance"]
    if not _names_own_tests(arguments) and not folder.is_relative_to(home):
        # Node ids read suites/..., and pytest's cache is not written beside the suites. The user's
        # options come later, so they take precedence.
        words += [f"--rootdir={home}", "-o", f"cache_dir={folder / '.pytest_cache'}"]
    return [*words, *joined(arguments)]


def _names_own_tests(arguments: Sequence[str]) -> bool:
    """Whether an argument names a path of the working folder and is not the value of an option."""
    return any(
        not word.startswith("-")
        and before not in _VALUED
        and Path(word.partition("::")[0]).exists()
        for before, word in zip(["", *arguments], arguments, strict=False)
    )


def main(options: argparse.Namespace) -> int:
    """Run pytest and return its exit status."""
    home = paths.bundled("suites").parent
    try:
        arguments = planned(options.arguments, Path.cwd())
    except UsageError as error:
        print(f"harness: error: {error}", file=sys.stderr)
        return _USAGE
    return _status(run(command(arguments, home, Path.cwd())))


def run(words: Sequence[str]) -> int:
    """Run pytest, which ends in order when it is signalled to; return as ``Popen.returncode`` is.

    It gets a process of its own: it changes signal handlers and output, and it may exit at once.
    """
    # A supervisor signals this process alone. pytest ends its machines, and writes its results.
    with passing_on(words, _PASSED_ON) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                # The terminal interrupts pytest as well, which stops its machines in order.
                continue


def _status(code: int) -> int:
    """Return the exit status of a pytest that ended; the host is at fault where a signal killed it."""
    if code >= 0:
        return code
    print(f"harness: pytest was killed by {signal.Signals(-code).name}", file=sys.stderr)
    return STATUS[Verdict.INFRA]
