"""Prompt encoder and mask decoder as a recipe runs them: looped, nested, packed, fused."""
