"""How a lab builds a state and lends it: once on the host, and until the lab is closed."""

from __future__ import annotations

import functools
import hashlib
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

from harness import profiles
from harness.artifacts import digest_inputs
from harness.catalog import Selection
from harness.cluster import providers
from harness.errors import HarnessError, SnapshotError, Verdict, verdict_of
from harness.lab.clusters import reach_cluster, save_cluster
from harness.lab.parts import Point
from harness.qemu import binary
from harness.states import Group, GroupState, Lease, Snapshot, State
from harness.states.graph import inputs, key_of

if TYPE_CHECKING:
    from harness.lab.lab import Lab


def lease(lab: Lab, state: State) -> Lease:
    """Return a state of the image under test, built first if the host does not have it.

    Raises:
        HarnessError: As :meth:`Lab.state <harness.lab.Lab.state>`.
    """
    point = Point(lab.image, state)
    with lab._parts.lock:
        making = lab._parts.making[point]
    with making:
        return _lease(lab, point)


def _lease(lab: Lab, point: Point) -> Lease:
    parts, state = lab._parts, point.state
    if point in parts.leases:
        return parts.leases[point]
    if point in parts.failed_states:
        raise parts.failed_states[point].with_traceback(None)
    parent = lab.state(state.parent) if state.parent is not None else None
    inputs = lab.state_inputs(state)
    try:
        lent = lab.states.lease(
            state.name,
            inputs,
            key_of(inputs),
            functools.partial(_build, lab, state, parent),
            parent=parent.entry if parent is not None else "",
            say=lab.progress.say,
        )
    except HarnessError as error:
        # By its cause, not by its class: the next test may find a calmer host.
        if verdict_of(error) in (Verdict.PRODUCT, Verdict.TIMEOUT):
            error.add_note(f"while the state {state.name} was built, once in this run")
            parts.failed_states[point] = error
        raise
    parts.leases[point] = lent
    return lent


def inputs_of(lab: Lab, state: State) -> dict[str, str]:
    """Return everything that decides the content of a state on this host, by name."""
    image = lab.image
    forms = image.cluster is not None and image.cluster.variant == image.variant
    return inputs(
        state,
        image=_image_inputs(image),
        arch=image.arch,
        baseline=image.arch_image.baseline,
        accel=lab.accelerator(image.arch),
        qemu=binary.find(image.arch),
        profile=profiles.of(image),
        boot=type(lab).boot,
        parent=key_of(lab.state_inputs(state.parent)) if state.parent is not None else "",
        # Its ports are in the machine, and its words formed the cluster.
        provider=providers.of_image(image) if forms else None,
    )


def _build(lab: Lab, state: State, parent: Lease | None, folder: Path) -> Snapshot | Group:
    """Do the steps of a state and save its machine, or those of its cluster, into ``folder``."""
    parts = lab._parts
    evidence = lab.run.folder(f"state-{state.name}-{time.time_ns()}")
    saved: Snapshot | Group
    with lab.child(f"state {state.name}", folder=evidence) as builder:
        builder._building = True
        if isinstance(state, GroupState):
            saved = save_cluster(reach_cluster(builder, state), folder, inside=parts.cache)
        else:
            machine = builder.reach(state, parent.snapshot if parent is not None else None)
            machine.wait_for_rest()
            try:
                saved = machine.save(folder, final=True, inside=parts.cache)
            except SnapshotError as error:
                shutil.rmtree(folder, ignore_errors=True)
                saved = machine.save_disks(folder, error.what, inside=parts.cache)
    parts.built.append(Point(lab.image, state))
    if not lab.keep:
        lab.run.drop(evidence)
    return saved


def _image_inputs(selection: Selection) -> dict[str, str]:
    """Return the name and the contents of an image, for the key of a state."""
    text = selection.path.read_bytes() if selection.path.exists() else b""
    return {
        "name": f"{selection.name}/{selection.variant}:{selection.version}",
        "artifacts": digest_inputs(selection),
        "image.yaml": hashlib.sha256(text).hexdigest(),
    }


def provenance(selection: Selection) -> dict[str, object]:
    """Return what a machine's record says of its image."""
    return {
        "image": selection.name,
        "variant": selection.variant,
        "version": selection.version,
        "arch": selection.arch,
        "inputs": digest_inputs(selection),
    }
