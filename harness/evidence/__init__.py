"""Evidence: everything a run leaves behind. This package reads and writes records, drives nothing."""
