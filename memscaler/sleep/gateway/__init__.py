"""The gateway: listens where clients connect, wakes what is behind it, and passes bytes through untouched.

door.py    a listening socket, its clients and their relays; visit.py: a client until it has a relay, or is refused
relay.py   two sockets and the bytes between them; poller.py, the selector, tells it what is ready
backend.py what is behind a door: looks whether it is ready, wakes it; connecting.py connects; decide.py: when (pure)
packets.py magic packets; governor.py asks the governor of this machine; heads.py reads a request line, writes a 503
run.py     puts the parts together: signals, reload, drain; world.py: what they share; metrics.py, check.py tell
"""
