"""The sharded classifier: the pass over the class centres, their sampling, exchange and updates."""
