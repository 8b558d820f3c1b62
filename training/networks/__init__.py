"""The PyTorch modules: encoders, decoders, and the autoencoder of both."""
