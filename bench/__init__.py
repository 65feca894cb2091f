"""Benchmarks of Harness, each paired with the bare tool, and with a peer, in the same run.

They are goals, not tests: nothing here decides whether a change is right. ``docs/bench.md`` says
what is measured and how to read it.

=============  ===================================================================
``core``       results, budgets, pairing, the table and the JSON
``guest``      the micro guest, its console a plain socket that any reader can take
``raw``        the bare tool: reads and writes that socket and nothing else
``peer``       labgrid's own drivers on the same socket
``side``       a process of its own for each side: harness, raw or labgrid
others         one module a benchmark
=============  ===================================================================
"""
