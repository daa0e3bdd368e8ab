"""A user's prompts, of any number and shape, checked and packed into flat batches."""

from samfast.prompts.jagged_prompts import check_jagged
from samfast.prompts.packing import group, pack

__all__ = ["check_jagged", "group", "pack"]
