"""The controller: its table of workers, endpoints, and the relay of requests. Never imports torch."""
