"""The comparison of connectors under one protocol: training runs, evaluations, step times, report."""
