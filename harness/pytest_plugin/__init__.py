"""The pytest plugin: options, fixtures, selection of scenarios, verdicts, sweeps over power cuts.

pytest loads it wherever Harness is installed (entry point ``pytest11``). In a run that uses none of it,
it makes no folder, imports nothing of Harness but itself, and prints nothing. No other module of the
library imports pytest.

=============  ==================================================================================
``session``    the labs of a pytest run, one for each architecture
``fixtures``   ``lab``, ``image``, ``live``, ``installed``, servers, releases
``selection``  which scenarios run: architectures, capabilities, workers
``tiers``      how much of the suites runs: ``--tier smoke|gate|nightly``
``ordering``   the longest tests first, for several workers
``collecting`` what a run would collect, as JSON, for the plan of a gate
``interrupts`` Ctrl-C and ``SIGTERM``: the end of a run before its time
``tries``      the second try of a test that the host made fail
``known``      failures that known.yaml lists make no run fail
``bundles``    one file that carries a failed test and its machines
``verdicts``   whose fault a failure is: reports, summary, ``results.json``, exit status
``planned``    a job of a plan: its tests, and results that are there from the start
``secrets``    what is declared as one is in nothing that a run leaves
``seeds``      ``fault_seed``: a test for each seed of clients and faults
``live``       the machines of a running test, for a person: ``--live``, ``--pause-on-failure``
``sweeps``     ``recorder`` and ``cut``: a test for each crash point
=============  ==================================================================================
"""

from __future__ import annotations

import pytest

from harness.pytest_plugin import session as sessions

pytest_plugins = (
    "harness.pytest_plugin.fixtures",
    "harness.pytest_plugin.selection",
    "harness.pytest_plugin.tiers",
    "harness.pytest_plugin.ordering",
    "harness.pytest_plugin.collecting",
    "harness.pytest_plugin.interrupts",
    "harness.pytest_plugin.tries",
    "harness.pytest_plugin.verdicts",
    "harness.pytest_plugin.planned",
    "harness.pytest_plugin.seeds",
    "harness.pytest_plugin.secrets",
    "harness.pytest_plugin.bundles",
    "harness.pytest_plugin.live",
    "harness.pytest_plugin.sweeps",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add Harness' options."""
    group = parser.getgroup("harness")
    group.addoption(
        "--image",
        default=None,
        metavar="NAME[/VARIANT][:VERSION]",
        help="the image under test (default: the ini option harness_image, or the only one)",
    )
    group.addoption(
        "--arch",
        default=None,
        metavar="ARCH[,ARCH]",
        help="x86_64, aarch64, several of them, or all: each test of an image then runs once for each"
        " (default: the image's first)",
    )
    group.addoption(
        "--images",
        action="append",
        default=[],
        metavar="DIR",
        help="a folder of images besides images/ of the project; can be given several times",
    )
    group.addoption(
        "--accel",
        default="auto",
        choices=("auto", "kvm", "tcg"),
        help="what runs guests; auto takes KVM if it proves itself (default: %(default)s)",
    )
    group.addoption(
        "--keep", action="store_true", help="keep the evidence of tests that pass as well"
    )
    group.addoption(
        "--evidence",
        default=".harness/runs",
        metavar="DIR",
        help="the folder that gets a folder of evidence for each run (default: %(default)s)",
    )
    group.addoption(
        "--known",
        default=None,
        metavar="FILE",
        help="the known failures (default: known.yaml of the project)",
    )
    group.addoption(
        "--timeout-scale",
        type=float,
        default=1.0,
        metavar="X",
        help="stretch the deadlines of guests by X, besides what emulation costs (default: %(default)s)",
    )
    group.addoption(
        "--fresh",
        action="store_true",
        help="reach states by their steps in each test, without the cache of saved machines",
    )
    group.addoption(
        "--state-budget",
        default=None,
        metavar="SIZE",
        help="the bytes that cached states may take on disk (default: 20GiB)",
    )
    group.addoption(
        "--services",
        default="auto",
        choices=("auto", "docker", "process"),
        help="how servers for guests run: in containers, or as local processes where no Docker"
        " engine answers (default: %(default)s)",
    )
    group.addoption(
        "--acceptance",
        action="store_true",
        help="judge an image: run Harness' own suites where no path is given, write results.json,"
        " and exit with a status that says whose fault a failure is",
    )
    parser.addini("harness_image", "the image under test where --image names none", default="")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Check the options; a wrong one is a usage error before anything starts."""
    config.addinivalue_line(
        "markers", "needs(*capabilities): runs only on images that declare all of them"
    )
    sessions.of(config).check_options()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: object) -> None:
    """Tell a worker of pytest-xdist which run it belongs to."""
    session = sessions.of(node.config)  # type: ignore[attr-defined]
    worker_input = node.workerinput  # type: ignore[attr-defined]
    worker_input["harness_run"] = str(session.run.path)
    worker_input["harness_each"] = node.config.option.dist == "each"  # type: ignore[attr-defined]


def pytest_unconfigure(config: pytest.Config) -> None:
    """End all machines and servers, and release the run's folder."""
    if sessions.SESSION in config.stash:
        sessions.of(config).close()
