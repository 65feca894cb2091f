"""The results of a run: one JSON file that a program reads instead of pytest's output.

::

    {"format": 1, "began": "2026-11-29T01:02:03Z", "seconds": 61.2, "status": 1,
     "command": ["suites/boot", "--image", "skiff"],
     "image": {"reference": "skiff", "name": "skiff", "variant": "core", "version": "1",
               "arch": "x86_64", "inputs": "5e884898da28..."},
     "versions": {"harness": "0.1.0", "python": "3.11.7", "qemu": "10.0.2", "pytest": "8.4.1"},
     "host": {"cpus": 2.0, "memory": 25264893952, "accel": "tcg"},
     "verdicts": {"passed": 3, "product": 1},
     "tests": [{"id": "suites/boot/test_live.py::test_no_unit_has_failed", "outcome": "failed",
                "verdict": "product", "reason": "unit foo.service failed on skiff",
                "seconds": {"setup": 1.2, "call": 0.4, "teardown": 0.1},
                "evidence": "boot-test_live-test_no_unit_has_failed", "worker": "gw0"}]}

The file is written whole and renamed: a reader never sees half of it. Paths of evidence are relative to
the run's folder, so that the folder can be moved.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from harness import jsonfile
from harness.errors import Verdict

FORMAT: Final = 1
FILE: Final = "results.json"

STATUS: Final[Mapping[Verdict, int]] = {
    Verdict.PRODUCT: 1,
    Verdict.TEST: 10,
    Verdict.TIMEOUT: 12,
    Verdict.INFRA: 11,
}
"""Exit statuses by verdict, the weightiest verdict first: a run with several has the first one's.

pytest's own statuses, 0 to 5, keep their meaning; 1 says that tests failed, and here that the image is
at fault.
"""


@dataclass(slots=True)
class TestResult:
    """The result of one test.

    Attributes:
        id: pytest's node id.
        outcome: ``passed``, ``failed``, ``skipped``; or ``interrupted``, for a test that did not end.
        verdict: The verdict; empty for a test that was skipped or interrupted.
        reason: The first line of the failure, or the reason of the skip.
        seconds: Durations by phase: ``setup``, ``call``, ``teardown``.
        evidence: Its folder below the run's; empty if nothing was kept.
        worker: The worker that ran it; empty where there is one process only.
    """

    __test__ = False

    id: str
    outcome: str = "interrupted"
    verdict: str = ""
    reason: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    evidence: str = ""
    worker: str = ""


@dataclass
class Results:
    """The results of a run, collected while it goes on.

    Attributes:
        tests: The result of each test, by node id, in the order in which they began to report.
        began: The start of the run, in seconds of the epoch.
    """

    tests: dict[str, TestResult] = field(default_factory=dict)
    began: float = field(default_factory=time.time)

    def test(self, node_id: str) -> TestResult:
        """Return the result of a test, made at the first call."""
        return self.tests.setdefault(node_id, TestResult(node_id))

    @property
    def verdicts(self) -> Counter[str]:
        """How many tests have each verdict; those that were skipped or interrupted have none."""
        return Counter(each.verdict for each in self.tests.values() if each.verdict)

    def status(self, status: int) -> int:
        """Return the exit status that says whose fault a run is.

        Args:
            status: pytest's own status. Only 1, "tests failed", is refined.
        """
        if status != 1:
            return status
        present = self.verdicts
        return next((code for verdict, code in STATUS.items() if present[verdict.value]), status)

    def write(self, folder: Path, status: int, **facts: Any) -> Path:
        """Write ``results.json`` and return its path.

        Args:
            folder: The run's folder.
            status: The run's exit status.
            facts: What else is known of the run: ``image``, ``versions``, ``host``, ``command``.

        Raises:
            OSError: The file cannot be written.
        """
        content = {
            "format": FORMAT,
            "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.began)),
            "seconds": round(time.time() - self.began, 3),
            "status": status,
            **facts,
            "verdicts": dict(self.verdicts),
            "tests": [asdict(each) for each in self.tests.values()],
        }
        path = folder / FILE
        jsonfile.write(path, content)
        return path
