"""The acceptance run: whether everything is right and fast on this machine's GPU, in nine minutes."""
