"""A user's prompts, of any number and shape, checked and packed into flat tensors."""

from samfast.prompts.batch_prompts import batch_prompts
from samfast.prompts.packing import check_count, pack, pack_groups, pack_objects

__all__ = ["batch_prompts", "check_count", "pack", "pack_groups", "pack_objects"]
