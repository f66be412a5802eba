"""The Gradio page: client of controller and workers, chats, tabs."""
