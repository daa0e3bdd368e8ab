"""How the packaged vit_xs weights were made; see training/README.md."""
