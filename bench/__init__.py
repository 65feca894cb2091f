"""Benchmarks of Harness, each paired with the bare tool, and with a peer, in the same run.

They are goals, not tests: none of them decides whether a change is right.
``docs/reference/benchmarks.md`` describes the measurements and how to read them.

=============  ===================================================================
``core``       rows, budgets, pairing, the table and the JSON
``labs``       machines as a test would have them: a lab for an image
``guest``      the micro guest with its console on a plain wire, which any reader can take
``raw``        the bare tool: it reads and writes that wire and nothing else
``peer``       labgrid's own drivers on the same wire
``side``       a separate process for each side: harness, raw or labgrid
others         one module for each benchmark
=============  ===================================================================
"""
