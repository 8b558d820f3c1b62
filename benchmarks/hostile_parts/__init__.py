"""The parts of benchmarks/hostile.py: one a bar, and the honest requests that two of them send."""
