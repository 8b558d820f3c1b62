"""Computing for requests: the queue of batches, the inference thread, what the routes call."""
