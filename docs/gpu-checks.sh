#!/usr/bin/env bash
# What can only be checked on a machine with an NVIDIA card. It prints what it sees, and ends with 1 if something is wrong.
#
#   docs/gpu-checks.sh                  builds what it needs
#   docs/gpu-checks.sh pack DIR         builds it elsewhere, and copies the programs to DIR
#   docs/gpu-checks.sh run DIR [LIB]    takes the programs from DIR; without Rust and .libtorch, LIB is where the libraries
#                                       of Python's PyTorch 2.11.0 for CUDA 13 are, .../site-packages/torch/lib
#
# MODELS="vit_reference" checks these alone, SECONDS_EACH limits one program (300), and DEVICE=cpu tries this script.
set -uo pipefail
cd "$(dirname "$0")/.."
MODELS=${MODELS:-cct_reference convmixer_reference gcvit_xxtiny_64 patchconvnet_reference vit_reference}
LIMIT=${SECONDS_EACH:-300}
DEVICE=${DEVICE:-cuda:0}
# One epoch of the digits with each network's published recipe: minutes on a processor, seconds on a card.
RECIPE="--preset reference --set dataset=digits --set data.validation={end={count=171}} --set train.epochs=1 --device $DEVICE"

# Copies the trainer, xtask and the test programs with CUDA cases to a directory.
pack() {
  mkdir -p "$1/tests"
  cargo build --release --workspace --bin trainer --bin xtask && cp target/release/{trainer,xtask} "$1" || exit 1
  cargo test --release -p torch-ext -p data-cifar --no-run 2>&1 |
    sed -n 's/.*Executable .* (\(.*\))/\1/p' | while read -r program; do
    name=$(basename "$program")
    cp "$program" "$1/tests/${name%-*}"
  done
  pwd >"$1/workspace"
}

case "${1:-}" in
pack) pack "${2:?a directory to copy to}" && exit ;;
run) PROGRAMS=$(realpath "${2:?the directory that was packed}") ;;
*) PROGRAMS=$(mktemp -d) && pack "$PROGRAMS" ;;
esac
SCRATCH=$(mktemp -d)
trap 'rm -rf "$SCRATCH"' EXIT
# The test programs read their files from where they were built, and find libtorch by .libtorch in that workspace.
BUILT=$(cat "$PROGRAMS/workspace")
[ -e "$BUILT" ] || { mkdir -p "$(dirname "$BUILT")" && ln -s "$PWD" "$BUILT"; }
LIB=${3:-$PWD/.libtorch/lib}
# How a program of this workspace is started. Programs built for the processor get CUDA from the library itself.
TORCH=(env "LD_LIBRARY_PATH=$LIB${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}")
[ -z "${3:-}" ] || TORCH+=("LD_PRELOAD=$LIB/libtorch_cuda.so")
TRAINER=("${TORCH[@]}" "$PROGRAMS/trainer")
WRONG=0

wrong() {
  echo "WRONG: $*"
  WRONG=$((WRONG + 1))
}

# field NAME RUN: a value of a run's record.
field() {
  sed -n "s/^ *\"$1\": \(.*[^,]\),\{0,1\}$/\1/p" "$2/record.json" | head -1
}

# train MODEL RUN [ARGUMENT...]: quiet and whole, or wrong.
train() {
  local model=$1 run=$2
  shift 2
  # shellcheck disable=SC2086
  timeout "$LIMIT" "${TRAINER[@]}" train --model "$model" $RECIPE --out "$run" "$@" >"$run.out" 2>"$run.err" ||
    wrong "$model $*: ends with $?: $(tail -1 "$run.out") $(cat "$run.err")"
  [ ! -s "$run.err" ] || wrong "$model $*: standard error holds: $(head -5 "$run.err")"
}

# same A B: weights byte for byte, and every number of the history but the times.
same() {
  local name a b
  name=$(cd "$1" && ls best.safetensors last.safetensors 2>/dev/null)
  a=$(sha256sum <"$1/$name" && cut -d, -f1-10 "$1/history.csv")
  b=$(sha256sum <"$2/$name" && cut -d, -f1-10 "$2/history.csv")
  [ -n "$name" ] && [ "$a" = "$b" ]
}

echo "== the machine"
nvidia-smi --query-gpu=driver_version,compute_cap,memory.total,name --format=csv || wrong "nvidia-smi ends with $?"
if [ -x "$PROGRAMS/xtask" ]; then
  CARGO_MANIFEST_DIR=$PWD/xtask "$PROGRAMS/xtask" doctor | grep -E "NVIDIA|libtorch|trainer"
fi

echo "== the tests, on the processor and on the card"
for program in "$PROGRAMS"/tests/*; do
  crate=data-cifar
  case "$(basename "$program")" in torch_ext | optimizers | switches) crate=torch-ext ;; esac
  (cd "$BUILT/crates/$crate" && timeout "$LIMIT" "${TORCH[@]}" "$program" --quiet) >"$SCRATCH/test" 2>&1 || {
    wrong "$(basename "$program")"
    grep -E "panicked|^test .*FAILED|left|right" -A1 "$SCRATCH/test" | head -20
  }
  echo "$(basename "$program"): $(grep "test result" "$SCRATCH/test")"
  grep -nE "[Ww]arning" "$SCRATCH/test" && wrong "$(basename "$program") warns"
done

echo "== what cannot be meant"
"${TRAINER[@]}" train --model vit_reference --preset quick --device cuda:99 --out "$SCRATCH/none"
[ $? = 2 ] || wrong "--device cuda:99 is not refused with exit code 2"

echo "== one epoch each, f32 and bf16: nothing but our own lines; what the record says"
for model in $MODELS; do
  for precision in f32 bf16; do
    run=$SCRATCH/$model-$precision
    train "$model" "$run" --precision $precision
    echo "$model $precision: $(field images_per_second "$run") images/s, $(field peak_memory_mb "$run") MiB on" \
      "$(field gpu "$run"), driver $(field driver "$run"), deterministic $(field deterministic "$run")"
    [ "$(field gpu "$run")" != null ] || wrong "the record names no card"
    [ "$(field peak_memory_mb "$run")" != null ] || wrong "the record has no peak memory"
  done
  train "$model" "$SCRATCH/$model-auto" --precision auto
  echo "$model auto: $(field precision "$SCRATCH/$model-auto")"
done

echo "== --deterministic: twice, and once killed and started again"
for model in $MODELS; do
  for precision in f32 bf16; do
    runs=$SCRATCH/$model-$precision
    train "$model" "$runs-1" --precision $precision --deterministic
    train "$model" "$runs-2" --precision $precision --deterministic
    train "$model" "$runs-4" --precision $precision --deterministic --no-graphs
    # Killed as soon as there is a checkpoint inside the epoch.
    # shellcheck disable=SC2086
    "${TRAINER[@]}" train --model "$model" $RECIPE --out "$runs-3" --precision $precision --deterministic \
      --checkpoint-steps 2 >/dev/null 2>"$runs-3.err" &
    child=$!
    until compgen -G "$runs-3/checkpoints/epoch-*-step-*" >/dev/null || ! kill -0 $child 2>/dev/null; do sleep 0.05; done
    kill -9 $child 2>/dev/null
    wait $child 2>/dev/null
    train "$model" "$runs-3" --precision $precision --deterministic --checkpoint-steps 2
    if ! same "$runs-1" "$runs-2"; then wrong "$model $precision: two deterministic runs differ"; fi
    if ! same "$runs-1" "$runs-4"; then wrong "$model $precision: it ends otherwise without CUDA graphs"; fi
    if ! same "$runs-1" "$runs-3"; then wrong "$model $precision: a run that was killed ends otherwise"; fi
    from=$(sed -n '/"resumed_from": \[$/{n;s/^ *//p}' "$runs-3/record.json")
    [ -n "$from" ] || wrong "$model $precision: it was too fast to be killed"
    same "$runs" "$runs-1" && chance=" (as without)" || chance=""
    echo "$model $precision: $(field images_per_second "$runs-1") images/s with --deterministic," \
      "$(field images_per_second "$runs") without$chance; went on from $from"
  done
done

echo "== speed, with CUDA graphs and without"
for model in $MODELS; do
  for precision in f32 tf32 bf16; do
    for graphs in "" --no-graphs; do
      # shellcheck disable=SC2086
      "${TRAINER[@]}" measure --model "$model" --preset reference --device "$DEVICE" --precision $precision $graphs \
        --seconds 2 >"$SCRATCH/speed" 2>&1 || wrong "$model $precision $graphs: measure ends with $?"
      echo "$(head -1 "$SCRATCH/speed") $graphs"
      [ "$(wc -l <"$SCRATCH/speed")" = 3 ] || wrong "measure says more: $(cat "$SCRATCH/speed")"
    done
  done
done

[ $WRONG = 0 ] && echo "nothing is wrong" || echo "$WRONG wrong"
[ $WRONG = 0 ]
