"""Attach: a loaded program and what it is for become a Link, one module for each family."""
