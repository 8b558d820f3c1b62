"""Read the images of requests in threads of this process, or in worker processes."""
