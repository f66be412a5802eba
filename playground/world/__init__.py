"""The synthetic world: scenes, how they are drawn, and what can be said about them."""
