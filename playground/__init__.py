"""The playground: a small synthetic world on which the whole LLaVA recipe runs on a CPU in minutes.

`world` defines, draws and describes scenes. `make_data` writes LLaVA's data files, `make_benchmarks` (with `tasks`) the
benchmarks' files. `build_bases` (with `pretraining`) trains the tiny CLIP and LLaMA that are shipped under `bases/`.
`connector_table` (with `study`) compares all connectors under one protocol, `elastic_study` the budgets of one.
"""
