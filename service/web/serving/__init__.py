"""Compute for requests: the queue of batches, the inference thread, and the backend that the routes call."""
