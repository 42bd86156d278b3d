"""The sections of a config, by what they are about."""
