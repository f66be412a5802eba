"""The controller: its state, HTTP routes, the relay of OpenAI requests, metrics."""
