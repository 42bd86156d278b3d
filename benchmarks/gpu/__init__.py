"""The acceptance run: whether everything is right and fast on this machine's GPU, in ten minutes."""
