"""Images to pixels for requests: in threads of this process, or in worker processes."""
