"""Images: bytes to pixels, and folders of image files; used by the service, by calibration and by training."""
