"""Programs that look at a model or reckon with it: visual anchors, cost."""
