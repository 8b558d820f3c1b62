"""The likelihoods p(x|z), as PyTorch trains them."""
