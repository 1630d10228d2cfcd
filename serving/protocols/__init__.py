"""Parsing and rendering of each wire protocol, without HTTP."""
