"""Training recipes: complete programs on top of the public interface, `shoal.connect()`."""
