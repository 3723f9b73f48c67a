"""The settings of a run, how they are read, and what they describe, made."""
