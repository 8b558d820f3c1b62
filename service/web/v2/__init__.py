"""The Open Inference Protocol over REST: the operations of `/v1` as models that its clients know how to ask."""
