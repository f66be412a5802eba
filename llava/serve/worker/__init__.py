"""Workers: endpoints, registration, and requests in upstream's wire and in the OpenAI API."""
