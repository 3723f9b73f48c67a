"""Helpers for every part of the program; they import none of those parts."""
