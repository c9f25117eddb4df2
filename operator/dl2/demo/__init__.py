"""`dl2 demo`: the main job of the product, told in a few minutes on an embedded cluster."""
