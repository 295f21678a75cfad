"""The console: what the services know, as JSON over HTTP, as a page and as live events.

It is a process of its own. It speaks gRPC to the ingest and inference services with the credential
of each caller, and keeps nothing.
"""
