"""The vectors of specs/: made by `python -m tools.vectors`, byte for byte the same every time.

One module per format, with ``vectors()``, which returns the file's content, and ``run(case)``, which puts one case
through polstore: it returns for a valid case whose outputs are as stated, and raises polstore's own error otherwise.
"""
