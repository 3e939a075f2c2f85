"""Reads text: numbers, names, equations, stated answers, units, languages. Imports no model and no config."""
