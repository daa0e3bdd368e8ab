"""Everything in an image: SAM's appendix B over the stages before it."""
