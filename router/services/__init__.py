"""Wires the objects of one worker from its settings; no other folder of the worker wires."""
