"""log P(x): the posterior's mode and curvature, samples by importance, the estimate."""
