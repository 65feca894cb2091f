"""Harness boots built operating-system images in QEMU and decides whether to accept them."""
