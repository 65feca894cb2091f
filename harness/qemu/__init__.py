"""QEMU: its command line (pure), its firmware, its process, its monitor."""
