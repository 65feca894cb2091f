"""Complaints of a guest that goes on: stalls, a clock that it distrusts, limits of its own.

A complaint ends no wait: under emulation, on a busy host, a kernel complains and still comes up. It
is recorded as a :class:`finding <harness.evidence.timeline.Finding>`, and it is no sign of progress,
see :mod:`harness.machine.watchdog`. Those of :data:`TIMING` tell that a guest may have failed because
the host gave it too little time.

The texts are those of Linux 6.12: each was compared with the strings of Debian's kernel. The sources
are named at each pattern; ``pr_fmt`` adds a prefix such as ``rcu: `` to some.
"""

from __future__ import annotations

import re
from typing import Final

from harness.console.watch import watcher

DISK: Final = "disk"
"""The name of the complaint about I/O errors, which a test may provoke."""

COMPLAINTS: Final = (
    # kernel/rcu/tree_stall.h, tree_exp.h, tasks.h. Repeated after 21 s, then every 66 s.
    watcher(
        "rcu-stall",
        "RCU stall",
        None,
        ["detected stall", "detected expedited stalls"],
        r"{k}(?:rcu: )?INFO: \S+ (?:self-)?detected (?:expedited )?stalls? on (?:CPU|tasks)",
    ),
    # kernel/rcu/tree_stall.h, rcu_check_gp_kthread_expired_fqs_timer() and
    # rcu_check_gp_kthread_starvation(): they follow a stall, and say more of its cause.
    watcher(
        "lost-timer",
        "timer that did not fire",
        None,
        ["kthread timer wakeup didn't happen"],
        r"{k}(?:rcu: )?\S+ kthread timer wakeup didn't happen for \d+ jiffies",
    ),
    watcher(
        "rcu-starved",
        "starved RCU thread",
        None,
        ["kthread starved for"],
        r"{k}(?:rcu: )?\S+ kthread starved for \d+ jiffies",
    ),
    # kernel/watchdog.c, watchdog_timer_fn() and watchdog_hardlockup_check().
    watcher(
        "soft-lockup",
        "soft lockup",
        None,
        ["BUG: soft lockup - CPU#"],
        r"{k}(?:NMI )?watchdog: BUG: soft lockup - CPU#\d+ stuck for \d+s",
    ),
    watcher(
        "hard-lockup",
        "hard lockup",
        None,
        ["detected hard LOCKUP"],
        r"{k}(?:NMI )?(?:watchdog: )?(?:CPU\d+: )?Watchdog detected hard LOCKUP on cpu \d+",
    ),
    # kernel/hung_task.c, check_hung_task(). Every 120 s, ten times in all.
    watcher(
        "hung-task",
        "hung task",
        None,
        [" blocked for more than ", " blocked in I/O wait for more than "],
        r"{k}INFO: task \S.{0,63}:\d+ blocked (?:in I/O wait )?for more than \d+ seconds",
    ),
    # kernel/workqueue.c, wq_watchdog_timer_fn().
    watcher(
        "workqueue-lockup",
        "workqueue lockup",
        None,
        ["BUG: workqueue lockup"],
        r"{k}BUG: workqueue lockup - pool",
    ),
    # kernel/time/clocksource.c, clocksource_watchdog(). A kind of its own: some machines provoke it, see
    # uefi_tcg_options in harness.arch.
    watcher(
        "tsc",
        "TSC marked unstable",
        None,
        ["Marking clocksource 'tsc"],
        r"{k}clocksource: timekeeping watchdog on CPU\d+: Marking clocksource 'tsc",
    ),
    # kernel/time/clocksource.c, clocksource_watchdog() and cs_watchdog_read();
    # arch/x86/kernel/tsc.c, mark_tsc_unstable(), which the former calls as well.
    watcher(
        "clock",
        "clock source marked unstable",
        None,
        [
            "as unstable because the skew",
            "excessive read-back delay",
            "Marking TSC unstable due to",
        ],
        r"{k}(?:clocksource: timekeeping watchdog on CPU\d+: (?:Marking clocksource '(?!tsc)"
        r"|\S+ excessive)"
        r"|tsc: Marking TSC unstable due to (?!clocksource watchdog))",
    ),
    # arch/x86/kernel/tsc.c, pit_hpet_ptimer_calibrate_cpu(): it distrusts the measurement that it takes.
    # With the CPU taken away in its middle, a guest's clock ran 19 times too fast.
    watcher(
        "clock-calibration",
        "doubtful calibration of the clock",
        None,
        ["PIT calibration deviates from", "calibration failed"],
        r"{k}tsc: (?:PIT calibration deviates from|HPET/PMTIMER calibration failed)",
    ),
    # A guest's own limits, which no scale stretches. systemd: src/core/device.c, service.c, mount.c
    # (their messages for JOB_TIMEOUT) and job.c; initramfs-tools: scripts/local; dracut:
    # dracut-initqueue.sh; util-linux and shadow: login.c.
    watcher(
        "guest-timeout",
        "limit of the guest's own that passed",
        None,
        [
            "Timed out waiting for device",
            "Timed out starting ",
            "Timed out mounting ",
            "/start timed out.",
            " operation timed out. ",
            "Mounting timed out. ",
            "Gave up waiting for root",
            "timeout, still waiting for",
            "Login timed out after",
        ],
        r"{k}(?:\[ TIME \] |systemd\[1\]: )Timed out (?:waiting for device|starting|mounting) "
        r"|{k}systemd\[1\]: \S+: (?:Job \S+/start timed out\."
        r"|(?:start(?:-pre|-post)? operation|Mounting) timed out\. )"
        r"|^Gave up waiting for root (?:file system )?device"
        r"|{k}(?:dracut-initqueue\[\d+\]: )?Warning: dracut-initqueue: timeout, still waiting for"
        r"|^Login timed out after \d+ seconds",
    ),
    # kernel/irq/spurious.c, __report_bad_irq().
    watcher(
        "spurious-irq",
        "interrupt without a handler",
        None,
        [": nobody cared (try booting"],
        r"{k}irq \d+: nobody cared \(try booting",
    ),
    # arch/x86/kernel/nmi.c, unknown_nmi_error(), pci_serr_error(), io_check_error().
    watcher(
        "nmi",
        "unexpected NMI",
        None,
        ["NMI received for unknown reason", "PCI system error (SERR)", "IOCK error (debug"],
        r"{k}(?:Uhhuh\. NMI received for unknown reason|NMI: PCI system error \(SERR\)"
        r"|NMI: IOCK error \(debug)",
    ),
    # block/blk-core.c, blk_errors, and block/blk-mq.c, blk_print_req_error(); fs/buffer.c,
    # buffer_io_error(); drivers/nvme/host/pci.c, nvme_timeout(); drivers/ata/libata-eh.c.
    watcher(
        DISK,
        "disk error",
        None,
        [" error, dev ", "Buffer I/O error on dev", "timeout, aborting", ": exception Emask"],
        r"{k}(?:(?:blk_update_request: )?(?:I/O|timeout|critical [a-z ]+|recoverable transport"
        r"|protection) error, dev \w+, sector \d+"
        r"|Buffer I/O error on dev(?:ice)? \S+, logical block"
        r"|nvme nvme\d+: I/O .* timeout, aborting|ata\d+(?:\.\d+)?: exception Emask)",
    ),
)
"""The complaints that a console records; the name of each is the kind of its findings."""

STALLS: Final = frozenset(
    {"rcu-stall", "lost-timer", "soft-lockup", "hard-lockup", "hung-task", "workqueue-lockup"}
)
"""The complaints of a kernel in which something stands still."""

TIMING: Final = frozenset({"clock", "tsc", "clock-calibration", "guest-timeout"})
"""The complaints of a guest that had too little time, or was misled about the time.

Beside pressure on the host in the same boot, they explain a failure: see :meth:`Stream.excuse
<harness.console.stream.Stream.excuse>`.
"""

_PATTERNS: Final = tuple(complaint.pattern for complaint in COMPLAINTS)

_STAMP: Final = re.compile(rb"\[ *\d+\.\d{6}\](?:\[ *[TC]\d+\])? ")

_TRACE: Final = re.compile(
    rb"^\s*(?:"
    # kernel/rcu/tree_stall.h: what follows the first line of a stall.
    rb"rcu: |RCU grace-period kthread|Stack dump where RCU|\(detected by |\(t=\d+ jiffies"
    rb"|blocking rcu_node structures|(?:Sending )?NMI (?:backtrace|from CPU)"
    rb"|Showing (?:all locks|backtraces|busy workqueues|hung)|workqueue \S+: flags=|pwq \d+: "
    rb"|pool \d+: |(?:in-flight|pending|delayed|cpus=.* flags=)"
    # kernel/sched/core.c, sched_show_task(); lib/dump_stack.c; kernel/hung_task.c.
    rb"|task:\S.* (?:state|stack):|Not tainted|Tainted: |\"echo 0 >|Workqueue: |Hardware name: "
    rb"|Future hung task reports|Kernel panic on|CPU: \d+ |CPU#?\d+ Utilization|Modules linked in:"
    rb"|#\d+:\s+\d+% system|\t?\d+ locks? held by|irq event stamp|(?:hard|soft)irqs last"
    # arch/x86/kernel/dumpstack.c, process_64.c; arch/arm64/kernel/traps.c, process.c.
    rb"|Call [Tt]race:|</?[A-Z_#]+>|Code: |RIP: |RSP: |EIP: |R[A-DS][XIP]:|RBP:|R\d\d: |[CDEFGS]S: "
    rb"|[CD]R\d: |ORIG_RAX|PKRU: |pstate: |(?:pc|lr|sp) : |x\d+ ?: |unwind_|handlers:|\[<[0-9a-f]+>\]"
    rb"|---\[ |Disabling IRQ #"
    # A function on a stack, with its offset and size.
    rb"|(?:\? )?[\w.]+\+0x[0-9a-f]+/0x[0-9a-f]+"
    # kernel/time/clocksource.c, arch/x86/kernel/tsc.c: what follows a clock that is marked unstable.
    rb"|clocksource: |tsc: Marking TSC unstable|TSC found unstable|sched_clock: Marking unstable"
    rb")"
)
"""The lines of a kernel that come with a complaint: its stack traces, registers and counts."""


def is_complaint(line: bytes) -> bool:
    """Return whether a line is a complaint of the kernel, or belongs to one.

    Args:
        line: One line of output without escape sequences and line break.
    """
    if any(pattern.search(line) for pattern in _PATTERNS):
        return True
    stamp = _STAMP.match(line)
    return _TRACE.match(line[stamp.end() :] if stamp else line) is not None
