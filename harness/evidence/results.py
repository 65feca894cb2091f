"""The results of a run: one JSON file that a program reads instead of pytest's output.

::

    {"format": 2, "began": "2026-11-29T01:02:03Z", "seconds": 61.2, "status": 1,
     "command": ["suites/boot", "--image", "skiff"],
     "image": {"reference": "skiff", "name": "skiff", "variant": "core", "version": "1"},
     "arches": {"x86_64": {"inputs": "5e884898da28...", "qemu": "10.0.2", "accel": "tcg"}},
     "versions": {"harness": "0.1.0", "python": "3.11.7", "pytest": "8.4.1"},
     "host": {"cpus": 2.0, "memory": 25264893952},
     "verdicts": {"passed": 3, "product": 1},
     "matrix": {"suites/boot": {"x86_64": {"passed": 3, "product": 1}}},
     "tests": [{"id": "suites/boot/test_live.py::test_no_unit_has_failed", "arch": "x86_64",
                "outcome": "failed", "verdict": "product", "reason": "unit foo.service failed on skiff",
                "seconds": {"setup": 1.2, "call": 0.4, "teardown": 0.1},
                "evidence": "boot-test_live-test_no_unit_has_failed-5d3c6f0a", "worker": "gw0",
                "tries": [], "signature": "5478720c38114f98", "known": null}]}

The file is written whole and renamed: a reader never sees half of it. Paths of evidence are relative to
the run's folder, so that the folder can be moved.

The results of a job of a plan have two keys more::

    {"plan": {"id": "5c1d0e6f9a2b7348", "job": "skiff-x86_64-1", "attempt": 1, "commit": "158d905..."},
     "errors": [{"id": "suites/boot/test_live.py", "reason": "SyntaxError: invalid syntax"}]}

``commit`` is the one that the job ran at, empty where git does not say. ``errors`` are those of the
collection of tests; there are seldom any. The file is there before the collection and is written again
as each test begins and ends, so that a job that is killed leaves what it knew: its ``status`` is then
null.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from harness import jsonfile
from harness.errors import Verdict

FORMAT: Final = 2
FILE: Final = "results.json"

STATUS: Final[Mapping[Verdict, int]] = {
    Verdict.PRODUCT: 1,
    Verdict.TEST: 10,
    Verdict.TIMEOUT: 12,
    Verdict.INFRA: 11,
}
"""Exit statuses by verdict, the weightiest verdict first: a run with several has the first one's.

pytest's own statuses, 0 to 5, keep their meaning; 1 says that tests failed, and here that the image is
at fault. A flaky test has passed, and a known failure is expected: alone, they make no run fail.
"""


def plain_id(test: str, arch: str) -> str:
    """Return the node id that a test of an architecture has in a run of that one alone."""
    if arch:
        for suffix, rest in ((f"[{arch}]", ""), (f"-{arch}]", "]")):
            if test.endswith(suffix):
                return test.removesuffix(suffix) + rest
    return test


@dataclass(slots=True)
class TestResult:
    """The result of one test.

    Attributes:
        id: pytest's node id; in a run of several architectures, the test's is in it.
        arch: The architecture that it ran on; empty for a test that uses no image.
        outcome: ``passed``, ``failed``, ``skipped``; ``xfailed``, for a test that failed in a known way
            only; or ``interrupted``, for a test that did not end.
        verdict: The verdict; empty for a test that was skipped or interrupted, unless the host
            interrupted it (``infra``). ``flaky`` is a test that failed and passed at a later try.
        reason: The first line of the failure, the reason of the skip or of the interruption; of a flaky
            test, of its first failure.
        seconds: Durations by phase: ``setup``, ``call``, ``teardown``; those of the last try.
        evidence: Its folder below the run's; empty if nothing was kept. Of a flaky test, that of the
            try that failed.
        worker: The worker that ran it; empty where there is one process only.
        tries: All its tries in order, the last one included; empty for a test that was run once.
        signature: What the failure has in common with others of its cause; see
            :mod:`harness.evidence.signature`. Empty for a test that did not fail.
        known: The entry of ``known.yaml`` that the failure matches: ``key``, ``entry`` (its
            ``file:line``), ``tracker``, ``owner``, ``expires``, and whether it has ``expired``;
            ``None`` if there is none.
        folder: The evidence of its last try while that goes on.
        ended: Whether its last try has ended.
    """

    __test__ = False

    id: str
    arch: str = ""
    outcome: str = "interrupted"
    verdict: str = ""
    reason: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    evidence: str = ""
    worker: str = ""
    tries: list[dict[str, Any]] = field(default_factory=list)
    signature: str = ""
    known: dict[str, Any] | None = None
    folder: str = ""
    ended: bool = False

    @property
    def failed_try(self) -> dict[str, Any] | None:
        """The first of the earlier tries that failed."""
        return next((each for each in self.tries if each["verdict"] not in _FINE), None)

    def try_again(self) -> None:
        """Keep what is known as an earlier try, and begin another one."""
        self.tries.append(self._record())
        self.outcome, self.verdict, self.reason, self.evidence = "interrupted", "", "", ""
        self.seconds, self.folder, self.ended = {}, "", False
        self.signature, self.known = "", None

    def dump(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        content = asdict(self)
        del content["folder"], content["ended"]
        if self.tries:
            content["tries"].append(self._record())
        return content

    def _record(self) -> dict[str, Any]:
        """Return the last try; of a test that is flaky, it passed."""
        if self.verdict == Verdict.FLAKY.value:
            verdict, reason, evidence = Verdict.PASSED.value, "", self.folder
            signature = ""
        else:
            verdict, reason, evidence = self.verdict, self.reason, self.evidence
            signature = self.signature
        return {
            "verdict": verdict,
            "reason": reason,
            "evidence": evidence,
            "seconds": dict(self.seconds),
            "signature": signature,
        }


_FINE: Final = ("", Verdict.PASSED.value, Verdict.FLAKY.value)
"""Verdicts of tries that did not fail."""


@dataclass
class Results:
    """The results of a run, collected while it goes on.

    Attributes:
        tests: The result of each test, by node id and worker, in the order in which they began. The
            worker is empty, except where each worker runs all tests.
        plan: The job of a plan that the run is: ``id`` of the plan, ``job``, ``attempt``, ``commit``;
            ``None`` for any other run.
        errors: The files whose tests could not be collected: ``id``, ``reason``.
        began: The start of the run, in seconds of the epoch.
    """

    tests: dict[tuple[str, str], TestResult] = field(default_factory=dict)
    plan: dict[str, Any] | None = None
    errors: list[dict[str, str]] = field(default_factory=list)
    began: float = field(default_factory=time.time)
    # The wall clock may be set during the run.
    _zero: float = field(default_factory=time.monotonic, repr=False)

    def test(self, node_id: str, worker: str = "") -> TestResult:
        """Return the result of a test, made at the first call."""
        return self.tests.setdefault((node_id, worker), TestResult(node_id))

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
        tried = Counter(each["verdict"] for test in self.tests.values() for each in test.tries)
        # Of a failure that counts, and yet was tried again with success, only the tries tell.
        counts = (self.verdicts, tried)
        known = (code for count in counts for name, code in STATUS.items() if count[name.value])
        return next(known, status)

    def write(
        self,
        folder: Path,
        status: int | None,
        *,
        clean: Callable[[Any], Any] = lambda content: content,
        **facts: Any,
    ) -> Path:
        """Write ``results.json`` and return its path.

        Args:
            folder: The run's folder.
            status: The run's exit status; ``None`` while the run goes on.
            clean: Takes declared secrets out of plain JSON.
            facts: What else is known of the run: ``image``, ``arches``, ``versions``, ``host``,
                ``command``, ``matrix``.

        Raises:
            OSError: The file cannot be written.
        """
        content = {
            "format": FORMAT,
            "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.began)),
            "seconds": round(time.monotonic() - self._zero, 3),
            "status": status,
            **({"plan": self.plan} if self.plan is not None else {}),
            **({"errors": self.errors} if self.errors else {}),
            **facts,
            "verdicts": dict(self.verdicts),
            "tests": [each.dump() for each in self.tests.values()],
        }
        path = folder / FILE
        jsonfile.write(path, clean(content))
        return path
