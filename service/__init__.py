"""The torch-free microservice: `engine` computes, `web` speaks HTTP."""
