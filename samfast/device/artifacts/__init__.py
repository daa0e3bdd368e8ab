"""What was compiled or tuned on this machine, kept in the user's cache so that a new process starts
warm.
"""

from samfast.device.artifacts.compiled_code import Kept, Key, load, save
from samfast.device.artifacts.entries import Entry, clear, delete_files, entries

__all__ = ["Entry", "Kept", "Key", "clear", "delete_files", "entries", "load", "save"]
