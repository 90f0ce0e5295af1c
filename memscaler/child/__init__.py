"""What the sleeper and the arbiter, processes that act for the governor, have in common; its side is daemon/child*.py.

life.py is one run: it hears the governor (link.py), owns what is written down (journal.py) and, when the governor ends,
has gone or stands still (standstill.py), undoes everything. undoing.py is for when no child lives any more. process.py
and lines.py are the process around it.
"""
