"""Programs that inspect a model: visual anchors, cost."""
