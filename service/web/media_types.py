"""The media types of bodies and answers."""

JSON = "application/json"
NPY = "application/x-npy"
CSV = "text/csv"
NDJSON = "application/x-ndjson"
PNG = "image/png"
MULTIPART = "multipart/form-data"
IMAGE_TYPES = (PNG, "image/jpeg", "image/webp")
PIXEL_TYPES = (*IMAGE_TYPES, MULTIPART, JSON, NPY)
