"""The logs signal: log lines, what is captured, and the writer.

The keys of JSON lines for other platforms are in `formats/`; `text.py` writes lines for people.
"""
