"""``harness doctor --gate``: its options, the needs of a job, the results of one that did not start."""

from __future__ import annotations

import argparse
import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from harness import arch as arches
from harness import paths
from harness.cli import version
from harness.errors import HarnessError, UsageError, Verdict
from harness.evidence.results import STATUS, Results
from harness.gate import plan as plans
from harness.host import accel, reach, runner
from harness.host import capacity as host
from harness.host.finding import Finding
from harness.qemu import binary

UNFIT: Final = STATUS[Verdict.INFRA]
"""The exit status of a host that is not fit."""

_POLICY: Final = (
    "runners/ has a network policy that denies it: see whether it applies to this pod, and whether the"
    " network of the cluster enforces policies"
)


@dataclass(frozen=True, slots=True)
class Job:
    """The job that this host is to be fit for.

    Attributes:
        arch: The architecture of its guests.
        needs: What it has to have.
        planned: The plan, the job in it and the attempt; ``None`` for any job.
        results: The folder for its results.
    """

    arch: str
    needs: plans.Needs
    planned: tuple[plans.Plan, plans.Job, int] | None = None
    results: Path = Path()


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    group = parser.add_argument_group("runners")
    group.add_argument(
        "--gate", action="store_true", help="say whether a job of a gate can run here"
    )
    group.add_argument("--kvm", action="store_true", help="the job has to have KVM")
    group.add_argument(
        "--neighbour",
        action="append",
        default=[],
        metavar="ADDRESS:PORT",
        help="an address in the cluster, where something listens, that must not answer; can be given"
        " several times",
    )
    group.add_argument("--plan", type=Path, metavar="FILE", help="the plan of the job; with --job")
    group.add_argument("--job", metavar="ID", help="the job that is to run here")
    group.add_argument(
        "--attempt", type=int, metavar="N", help="the number of its attempt (default: the plan's)"
    )
    group.add_argument(
        "--results",
        type=Path,
        metavar="DIR",
        help="where an unfit host leaves results.json for the job",
    )


def refuse_without_gate(options: argparse.Namespace) -> None:
    """Refuse options that mean nothing without ``--gate``.

    Raises:
        UsageError: There is one.
    """
    for name in ("kvm", "neighbour", "plan", "job", "attempt", "results"):
        if getattr(options, name):
            raise UsageError(f"--{name} goes with --gate")


def job(options: argparse.Namespace) -> Job:
    """Return the job that the options name, or what any job needs.

    Raises:
        UsageError: The options do not go together, or the plan cannot be read or has no such job.
    """
    named = (options.plan, options.job, options.results)
    if not any(named) and options.attempt is None:
        return Job(arches.host(), plans.Needs(kvm=options.kvm))
    if not all(named):
        raise UsageError(
            "--plan, --job and --results go together",
            hint="harness doctor --gate --plan plan.json --job ID --results DIR",
        )
    plan = plans.read(options.plan)
    planned = plan.job(options.job)
    attempt = plan.attempt if options.attempt is None else options.attempt
    if attempt < 1:
        raise UsageError(f"--attempt must be at least 1, not {attempt}")
    needs = planned.needs
    if options.kvm and not needs.kvm:
        needs = plans.Needs(needs.memory, needs.cpus, needs.disk, kvm=True)
    return Job(planned.arch, needs, (plan, planned, attempt), options.results)


def attempts(options: argparse.Namespace) -> reach.Attempts:
    """Begin to connect to what must not answer.

    Raises:
        UsageError: An address is none.
    """
    endpoints = []
    # Outside of a pod neither is out of bounds: a hosted runner is a virtual machine of a cloud.
    if api := paths.kubernetes_api():
        server, port = api
        address = f"[{server}]:{port}" if ":" in server else f"{server}:{port}"
        stolen = (
            f"it gives credentials of the node to whoever asks. {_POLICY}; block it at the node too"
        )
        endpoints.append(reach.endpoint("metadata", runner.METADATA, stolen))
        endpoints.append(reach.endpoint("api server", address, _POLICY))
    endpoints += [
        reach.endpoint(f"neighbour {number}", address, _POLICY)
        for number, address in enumerate(options.neighbour, 1)
    ]
    return reach.Attempts(endpoints)


def findings(job: Job) -> list[Finding]:
    """Return the findings on this host itself."""
    now = datetime.datetime.now(datetime.UTC)
    cache = paths.cache_dir()
    in_pod = paths.kubernetes_api() is not None
    return [
        _versions(job),
        runner.age(runner.IMAGE, now),
        _kvm(job, cache),
        *runner.memory(host.capacity(), job.needs.memory, in_pod=in_pod),
        _cpus(job),
        runner.disk(_existing(cache), job.needs.disk),
        runner.shared_memory(),
    ]


def leave_results(job: Job, findings: list[Finding]) -> None:
    """Leave results in which each test of the job is ``infra``, for the judge and for the report.

    Raises:
        UsageError: They cannot be written.
    """
    if job.planned is None:
        return
    plan, planned, attempt = job.planned
    faults = [
        f"{each.name}: {each.text.splitlines()[0]}"
        for each in findings
        if each.needed and not each.ok
    ]
    reason = f"the runner is not fit: {'; '.join(faults)}"
    results = Results()
    for name in planned.tests:
        test = results.test(name)
        test.arch, test.verdict, test.reason = planned.arch, Verdict.INFRA.value, reason
    try:
        job.results.mkdir(parents=True, exist_ok=True)
        results.write(
            job.results,
            UNFIT,
            plan={
                "id": plan.id,
                "job": planned.id,
                "attempt": attempt,
                "commit": plans.commit_of(Path.cwd()),
            },
            command=["doctor", "--gate"],
        )
    except OSError as error:
        raise UsageError(f"the results cannot be written: {error}", hint="--results DIR") from error


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())


def _versions(job: Job) -> Finding:
    own = version()
    data = {"harness": own, "plan": job.planned[0].harness if job.planned else None}
    if job.planned and job.planned[0].harness != own:
        text = f"this is Harness {own}, and the plan is of {job.planned[0].harness}"
        remedy = "roll out the runner image of the plan's version, or make the plan with this one"
        return Finding("harness", False, f"{text}\n{remedy}", data)
    return Finding("harness", True, own, data)


def _cpus(job: Job) -> Finding:
    room = host.capacity()
    text = f"{room.cpus:g} (limit: {room.cpu_limit}), {job.needs.cpus} needed"
    data = {"cpus": room.cpus, "needed": job.needs.cpus}
    if room.cpus >= job.needs.cpus:
        return Finding("cpus", True, text, data)
    # A job with too few is slow, not wrong: deadlines follow the load.
    return Finding("cpus", False, f"{text}\nraise resources.limits.cpu", data, needed=False)


def _kvm(job: Job, cache: Path) -> Finding:
    try:
        device = accel.kvm(job.arch, qemu=binary.find(job.arch).path, cache_dir=cache)
    except HarnessError as error:
        return Finding("kvm", False, str(error), {"state": "unknown"}, job.needs.kvm)
    return runner.kvm(device, needed=job.needs.kvm)
