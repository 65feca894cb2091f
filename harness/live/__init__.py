"""A running test's machines, reached from another terminal of the same user.

Each process of a run that starts a machine listens on one Unix socket (:mod:`~harness.live.server`) in
a folder that only its user can enter (:mod:`~harness.live.runtime`). A request is one line of JSON, and
so is its answer; after the answer to ``attach`` the connection is the console. ``harness ps``,
``attach``, ``ssh``, ``screenshot`` and ``continue`` ask (:mod:`~harness.live.client`). A run in which
nobody asks pays for one thread that is blocked in ``accept``. :mod:`~harness.live.mirror` prints
consoles for ``--live``.
"""
