"""Fine-tuning and preference tuning of gpt-oss in its own MXFP4 weights."""

__version__ = "0.1.0"
