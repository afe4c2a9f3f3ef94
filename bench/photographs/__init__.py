"""Tokens of real photographs: the kept features of a vision transformer, how they are made, and what projects them."""
