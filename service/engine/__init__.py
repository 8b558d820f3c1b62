"""Numbers only: arrays in, arrays out. No web, no torch; `Model` in model.py is the whole interface."""
