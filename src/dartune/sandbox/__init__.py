"""Execution of untrusted code: process workers, isolated calls, system-call filter, unit tests."""
