#!/usr/bin/env bash
# Train the photo model on a GPU that is available for minutes only, with data that arrives in parts.
#
#   scripts/train_photo_gpu.sh add DATA SHARD...                   copy tar shards to the folder DATA
#   scripts/train_photo_gpu.sh train DATA RUN MINUTES [OPTION...]  start the run, or resume it, and stop after MINUTES
#   scripts/train_photo_gpu.sh pack RUN TARGET                     copy the run to TARGET in files of at most 15 MiB
#   scripts/train_photo_gpu.sh unpack TARGET RUN                   restore the run from these files
#
# "add" can be called once for each part that arrives. "train" passes the options to "chromabox train photo", for
# example "--init efficientnet-lite0 --size 192 --max-size 320 --batch-size 128 --epochs 10". It uses bfloat16, the
# channels-last layout and a compiled model; later options override these. The run saves its state when the time is up.
# The same command, with the same RUN, continues where it stopped, also on another machine after "pack" and "unpack".
set -euo pipefail
python=${PYTHON:-python}

case "${1:-}" in
  add)
    data=$2
    mkdir -p "$data"
    for shard in "${@:3}"; do
      tar -tf "$shard" >"$data/.list"  # an incomplete file is an error
      cp "$shard" "$data/"
      echo "$data/$(basename "$shard"): $(wc -l <"$data/.list") files"
    done
    rm -f "$data/.list"
    ;;
  train)
    data=$2 run=$3 minutes=$4
    if [ -e "$run/last.safetensors" ]; then
      arguments=(train --resume "$run")
    else
      rm -rf "$run"
      arguments=(train photo --data "$data" -o "$run" --precision bfloat16 --channels-last on --compile on "${@:5}")
    fi
    code=0
    timeout --signal INT --kill-after 60 "${minutes}m" "$python" -m chromabox "${arguments[@]}" || code=$?
    # 124: the time is up and the state is saved. 130: interrupted, with the same effect.
    case $code in 0 | 124 | 130) ;; *) exit "$code" ;; esac
    ;;
  pack)
    mkdir -p "$3"
    tar -C "$2" -cf - --exclude best.onnx . | split -b 15M - "$3/run.tar."
    ls -l "$3"
    ;;
  unpack)
    mkdir -p "$3"
    cat "$2"/run.tar.* | tar -C "$3" -xf -
    ;;
  *)
    sed -n '2,13p' "$0" >&2
    exit 2
    ;;
esac
