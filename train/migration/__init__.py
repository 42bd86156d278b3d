"""From arcface_torch and its kin to Facemill: their configs, read and never run, and their checkpoints."""
