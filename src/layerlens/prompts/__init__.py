"""Prompts from files, the hub or memory, as chat messages or as token ids ready to be analysed."""

from layerlens.prompts.readers import find_template, read_problems, read_prompts
from layerlens.prompts.sample import Sample

__all__ = ["Sample", "find_template", "read_problems", "read_prompts"]
