"""Fuzzing of everything that reads what others wrote: `python -m tests.fuzz --help`.

Inputs come from a grammar (hypothesis' strategies: whole and nearly whole documents, messages, records) and from
mutations of these. Each target says what may come out (its own error, or a value) and compares a value with another
implementation's, or with itself after a round trip. A seed makes a run repeatable; what fails is saved as a file.
"""
