"""The models and versions that are served: try out, open, keep and reload them."""
