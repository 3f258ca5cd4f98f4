"""The classic dialect: the original protocol, served beside twinport/2. ``plane`` is its door."""
