#!/bin/bash
# Trains and evaluates every connector on the embedded playground under equal data, steps, batches, learning rates and
# seeds, and writes one table and plots to docs/benchmarks/connectors.md. No GPU, weights or network are needed after
# the installation. About 1.5 minutes of one core per connector and seed; a second run skips what is finished.
#   bash scripts/v1_5/connector_table.sh
#   CONNECTORS="mlp2x_gelu acformer" SEEDS="1" OUT=/tmp/report bash scripts/v1_5/connector_table.sh
# Settings by environment variable:
#   CONNECTORS    names, the first is the baseline of the step times (default: all thirteen, mlp2x_gelu first)
#   SEEDS         default "1 2 3"
#   TOKENS        visual tokens asked of every connector that can choose (17)
#   STAGE1_STEPS  of 32 samples (75);  STAGE2_STEPS  of 16 samples (200)
#   PICTURES      for training (4000);  QUESTIONS  held out, of each of the six kinds (100)
#   DATA, RUNS    folders of the images, and of checkpoints, logs and single results
#   OUT           folder of the report (docs/benchmarks)
#   JOBS          processes at once, one thread each (default: number of cores)
set -u
. "$(dirname "$0")/../lib/setup.sh"
ensure_venv "train,eval"
export OMP_NUM_THREADS=1

options=()
for setting in TOKENS STAGE1_STEPS STAGE2_STEPS PICTURES QUESTIONS DATA RUNS OUT JOBS; do
    flag=${setting,,}
    [ -n "${!setting:-}" ] && options+=("--${flag//_/-}" "${!setting}")
done
[ -n "${CONNECTORS:-}" ] && read -ra names <<<"$CONNECTORS" && options+=(--connectors "${names[@]}")
[ -n "${SEEDS:-}" ] && read -ra numbers <<<"$SEEDS" && options+=(--seeds "${numbers[@]}")

exec python -m playground.connector_table "${options[@]}"
