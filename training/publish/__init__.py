"""From a run to a version in the store: export, evaluation, publication."""
