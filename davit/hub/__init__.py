"""Bring models to the Hugging Face hub in timm's format, and describe them there."""
