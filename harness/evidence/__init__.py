"""Evidence: the files that a run leaves behind. This package reads and writes them, nothing else."""
