"""Decide by the results of a workflow's jobs: the check that a pull request requires.

::

    NEEDS='{"checks": {"result": "success"}}' python .ci/needs.py checks 'hosted|own:judged'

``NEEDS`` is ``toJSON(needs)`` of the job. Each argument is a job that has to have succeeded. Of ``A|B``
exactly one has to, and the others have to be skipped. ``:OUTPUT`` asks of the one that succeeded that
this output of it is ``success``: a called workflow whose judge was skipped has no such output.

GitHub takes a skipped job for a success where a check is required. A result is one of success, failure,
cancelled and skipped (docs.github.com, "Contexts reference", ``needs.<job_id>.result``). So nothing
passes here that is not named, and what is named has to be proven.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

RESULTS = ("success", "failure", "cancelled", "skipped")


def complaints(needs: Mapping[str, Any], rules: Sequence[str]) -> list[str]:
    """Return what is not proven; nothing, if the change may be merged.

    Args:
        needs: The context ``needs``: job to ``{"result", "outputs"}``.
        rules: The arguments of the command.
    """
    if not rules:
        return ["no job is named: nothing is proven"]
    faults: list[str] = []
    named: set[str] = set()
    for rule in rules:
        names, _, output = rule.partition(":")
        jobs = names.split("|")
        named.update(jobs)
        if missing := [job for job in jobs if job not in needs]:
            faults.append(
                f"{', '.join(missing)}: the gate does not need it; see `needs` of its job"
            )
            continue
        results = {job: str(needs[job].get("result", "")) for job in jobs}
        passed = [job for job, result in results.items() if result == "success"]
        others = [job for job in jobs if job not in passed]
        bad = [job for job in others if len(jobs) == 1 or results[job] != "skipped"]
        faults += [f"{job}: {results[job] or 'no result'}" for job in bad]
        if not bad and len(passed) != 1:
            faults.append(f"{' and '.join(jobs)}: one of them has to run, {len(passed)} did")
        for job in passed:
            value = (needs[job].get("outputs") or {}).get(output, "") if output else "success"
            if value != "success":
                faults.append(f"{job}: its output {output} is {value!r}, not 'success'")
    return faults + [f"{job}: no rule names it" for job in sorted(set(needs) - named)]


def main(rules: Sequence[str]) -> int:
    """Print the results and the complaints; return the exit status."""
    try:
        needs = json.loads(os.environ.get("NEEDS", ""))
        if not isinstance(needs, dict) or not all(isinstance(job, dict) for job in needs.values()):
            raise ValueError("not an object of objects")
    except ValueError as error:
        print(f"run: error: NEEDS is not the context `needs` as JSON: {error}", file=sys.stderr)
        return 2
    for job, content in needs.items():
        print(f"{job}: {content.get('result', '')}")
    faults = complaints(needs, rules)
    for complaint in faults:
        print(f"run: error: {complaint}", file=sys.stderr)
    if faults:
        print("  try: look at the jobs above, and run the failed ones again", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
