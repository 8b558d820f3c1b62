"""For operators: settings, keys, logs and metrics."""
