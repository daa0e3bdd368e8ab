"""Compiled code and tuned kernels in the user's cache, so that a new process starts fast."""

from samfast.device.artifacts.compiled_code import CachedCode, Key, load, save
from samfast.device.artifacts.entries import Entry, clear, delete_files, entries

__all__ = ["CachedCode", "Entry", "Key", "clear", "delete_files", "entries", "load", "save"]
