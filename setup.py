"""Kept for tools that look for it; everything is stated in pyproject.toml."""

from setuptools import setup

setup()
