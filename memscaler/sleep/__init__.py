"""Deeper sleep: the stages below a parked GPU, down to the whole machine; and the gateway that brings it back.

The sleeper is a process of its own, started by the governor: ladder.py decides (pure), charge.py carries out for one
server through the drivers (drivers/), journal.py remembers, undo.py brings back what nobody is left to bring back,
link.py is the socket to the governor, run.py puts the parts together.
"""
