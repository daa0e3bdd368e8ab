"""A user's prompts, of any number and shape, checked and packed into one flat batch."""

from samfast.prompts.pack import pack

__all__ = ["pack"]
