"""What all tests of Harness itself begin with."""

from __future__ import annotations

import signal

# Whoever starts the tests in the background of a script has them ignore Ctrl-C, and with them all that
# they start: of programs that are to end by it some would go on for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
