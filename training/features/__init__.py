"""The frozen first stage of a model of features: the graph, its whitening, and the maps of a data set, cached."""
