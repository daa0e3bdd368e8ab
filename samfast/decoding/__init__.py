"""Prompt encoder and mask decoder in one call: looped, nested, packed, fused."""
