"""The model worker: HTTP application, registration, requests, OpenAI API."""
