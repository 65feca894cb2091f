"""QEMU: its command line, firmware, process, monitor and block devices."""
