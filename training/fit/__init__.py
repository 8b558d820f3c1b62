"""A training run: objective, loop, state, recovery, and the folder that holds it."""
