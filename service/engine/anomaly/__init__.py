"""Anomaly scores: statistics of an image, scores, conformal p-values, the detector."""
