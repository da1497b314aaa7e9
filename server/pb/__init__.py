"""Stubs generated from proto/ by `python -m server.proto_gen`; not edited by hand."""
