"""What a model is like, on one page of figures."""
