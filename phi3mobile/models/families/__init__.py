"""One file per family, named by its model_type. registry.py finds them; docs/adding-a-family.md says what one states."""

DEFAULT = "phi3"  # what a shape without a model_type is
