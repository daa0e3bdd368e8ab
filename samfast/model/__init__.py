"""SAM as the paper tells it: plain modules with Meta's state-dict keys, and the checkpoints they
load.
"""
