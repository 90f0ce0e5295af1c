"""A network card that sleeps, as a program: sees every frame of an interface, and says when one is meant for it.

As AMD's white paper 20213 has it: anywhere in a frame, six bytes ff and then its address sixteen times (and then its
password). It shares no code with memscaler.

Usage: python card.py INTERFACE MAC [PASSWORD], both in hex without colons. Prints a line for each such frame.
"""

import socket
import sys

interface, mac = sys.argv[1], bytes.fromhex(sys.argv[2])
password = bytes.fromhex(sys.argv[3]) if len(sys.argv) > 3 else b""
ALL_PROTOCOLS, OUTGOING = 3, 4
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL_PROTOCOLS))
wire.bind((interface, 0))
print("listening", flush=True)
while True:
    frame, about = wire.recvfrom(65536)
    if about[2] != OUTGOING and b"\xff" * 6 + mac * 16 + password in frame:
        print("magic", frame[:6].hex(), frame[6:12].hex(), frame[12:14].hex(), flush=True)
