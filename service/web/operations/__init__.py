"""For operators: settings, keys, logs, metrics, traces and probes."""
