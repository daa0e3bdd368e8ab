"""Speed, memory and accuracy, measured: each number with its stamp, parity checked in the same
run.
"""
