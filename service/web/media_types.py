"""The media types that bodies and answers come in."""

JSON = "application/json"
NPY = "application/x-npy"
PNG = "image/png"
MULTIPART = "multipart/form-data"
