"""Which models and versions are served: tried out, opened, kept and renewed."""
