"""Run a plan in a Kubernetes cluster: print its Indexed Job, and collect what the pods left.

print:   harness job plan.json --image NAME@sha256:... --results CLAIM | kubectl apply -f -
collect: harness job plan.json --collect results/; then: harness gate plan.json results/

Pod N runs job N of the plan. Infra (exit status 11, a kill, an eviction) runs once more; all else is a
verdict. Results go to a persistent volume claim, so they outlive pods and nodes; --collect reads it by
a pod of its own and needs kubectl. The pods satisfy the Pod Security Standard "restricted".

Exit status of --collect: 0 if each job left results, 11 if one did not (results/pods.json says why, and
harness gate counts it as infra). --index and --keep are what the pods themselves run.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from harness.cli.options import say
from harness.errors import UsageError
from harness.gate import plan as plans


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("plan", type=Path, metavar="PLAN", help="the plan, from harness plan")
    parser.add_argument(
        "--image", default="", metavar="NAME@DIGEST", help="the image with Harness and the suites"
    )
    parser.add_argument(
        "--results", default="", metavar="CLAIM", help="the persistent volume claim for the results"
    )
    parser.add_argument(
        "--cache", default="", metavar="CLAIM", help="the claim of the warm cache, read only"
    )
    parser.add_argument(
        "--namespace", default="", metavar="NAME", help="the namespace (default: the context's)"
    )
    parser.add_argument(
        "--context", default="", metavar="NAME", help="kubectl's context, with --collect"
    )
    parser.add_argument(
        "--parallel", type=int, default=4, metavar="N", help="pods at a time (default: %(default)s)"
    )
    parser.add_argument("--priority", default="", metavar="CLASS", help="the priority class")
    parser.add_argument(
        "--kvm",
        default="squat.ai/kvm",
        metavar="RESOURCE",
        help="the resource that stands for /dev/kvm (default: %(default)s)",
    )
    parser.add_argument(
        "--kvm-group",
        type=int,
        default=None,
        metavar="GID",
        help="the nodes' group of /dev/kvm, where not all may open it",
    )
    parser.add_argument(
        "--pull-secret", default="", metavar="NAME", help="the secret to pull the image with"
    )
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument(
        "--collect", type=Path, default=None, metavar="DIR", help="collect the results into DIR"
    )
    modes.add_argument("--keep", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--index", type=int, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--failures", type=_failures, default=0, help=argparse.SUPPRESS)


def main(options: argparse.Namespace) -> int:
    """Print, collect, run or keep."""
    plan = plans.read(options.plan)
    if options.collect is not None:
        return _collect(options, plan)
    if options.index is not None:
        return _keep(options, plan) if options.keep else _run(options, plan)
    if options.keep:
        raise UsageError("--keep needs --index")
    return _print(options, plan)


def _failures(text: str) -> int:
    """Return the number of failures before. A first pod may have no annotation, and so no text."""
    return int(text or 0)


def _print(options: argparse.Namespace, plan: plans.Plan) -> int:
    import yaml

    from harness.gate import kubernetes

    for option in ("image", "results"):
        if not getattr(options, option):
            raise UsageError(f"--{option} is missing", hint="harness job --help")
    settings = kubernetes.Settings(
        image=options.image,
        results=options.results,
        cache=options.cache,
        namespace=options.namespace,
        parallelism=options.parallel,
        priority=options.priority,
        kvm=options.kvm,
        kvm_group=options.kvm_group,
        pull_secret=options.pull_secret,
    )
    objects = kubernetes.manifests(plan, settings)
    # PyYAML writes an object that occurs twice as an alias; copies have none.
    plain = [json.loads(json.dumps(each)) for each in objects]
    sys.stdout.write(yaml.safe_dump_all(plain, sort_keys=False, width=100))
    return 0


def _collect(options: argparse.Namespace, plan: plans.Plan) -> int:
    from harness.evidence.results import FILE
    from harness.gate import collected, pod

    kubectl = collected.Kubectl(options.context, options.namespace)
    ends = collected.collect(plan, options.collect, kubectl, results=options.results)
    missing = [job.id for job in plan.jobs if not any((options.collect / job.id).rglob(FILE))]
    say(f"{options.collect}: results of {len(plan.jobs) - len(missing)} of {len(plan.jobs)} jobs")
    for name in missing:
        of_job = [end for end in ends if end.job == name]
        for end in of_job:
            where = f" on {end.node}" if end.node else ""
            say(f"{name}: no results: {end.pod}{where}: {end.phase}: {end.why or 'no reason'}")
        if not of_job:
            say(f"{name}: no results, and the cluster knows no pod of it")
    return pod.INFRA if missing else 0


def _run(options: argparse.Namespace, plan: plans.Plan) -> int:
    from harness.gate import kubernetes, pod

    job, attempt = pod.job_of(plan, options.index, options.failures)
    say(f"job {job.id}, attempt {attempt}: {len(job.tests)} tests of {job.image} {job.arch}")
    named = (options.plan.absolute(), job, attempt, Path(kubernetes.EVIDENCE))
    return pod.run(pod.doctor(*named), pod.tests(*named), job.timeout_minutes * 60)


def _keep(options: argparse.Namespace, plan: plans.Plan) -> int:
    from harness.gate import kubernetes, pod

    job, attempt = pod.job_of(plan, options.index, options.failures)
    pod.wait_for_end()
    folder = Path(kubernetes.RESULTS) / kubernetes.attempt_folder(plan, job.id, attempt)
    count = pod.keep(Path(kubernetes.EVIDENCE), folder, say)
    say(f"{folder}: {count} files")
    return 0
