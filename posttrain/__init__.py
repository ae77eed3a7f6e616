"""posttrain: turn a base language model into an assistant, and see every token that was trained."""

__version__ = "0.1.0"
