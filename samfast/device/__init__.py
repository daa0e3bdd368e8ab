"""What every stage needs of a device, and nothing about masks, prompts or models."""
