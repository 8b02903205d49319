"""Sockets: one wire, one dialogue loop, deadlines, listening and connecting."""
