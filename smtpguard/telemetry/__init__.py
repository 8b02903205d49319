"""Sinks of events: log lines, metrics, decision history."""
