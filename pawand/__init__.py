"""The Pawan coding agent on HTTP."""

__version__ = "0.1.0"
