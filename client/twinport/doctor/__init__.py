"""Finding out why a server cannot be reached or used, layer by layer: what ``twinport doctor`` does."""
