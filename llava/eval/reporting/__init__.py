"""Reports over many results: tables, published figures, the plot, and the data of a web page."""
