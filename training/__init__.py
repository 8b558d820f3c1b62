"""Train variational autoencoders with PyTorch and publish them into the model store."""
