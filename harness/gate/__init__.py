"""The gate: plans of jobs, the judge of their results, and what a nightly keeps of them."""
