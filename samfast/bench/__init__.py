"""Measuring speed, memory and accuracy: numbers with a stamp, and parity from the same run."""
