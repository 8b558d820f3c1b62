"""The parts of benchmarks/gpu.py: each is a set of cases, and each case runs in a process of its own."""
