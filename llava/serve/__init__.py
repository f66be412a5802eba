"""The servers: controller, workers, web page, and their wire protocol."""
